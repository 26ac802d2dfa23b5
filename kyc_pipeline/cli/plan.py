"""`kyc-pipeline plan`: what a backfill would do and cost. Makes no call and changes nothing."""

import tempfile
from collections.abc import Sequence
from datetime import date

import click

from kyc_pipeline.cli.options import check_landing, date_range, days_between, format_table
from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.manifests import awaits_files, ingest_partition, is_ingested
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import load_settings
from kyc_pipeline.verify.planning import PartitionPlan, plan_partitions, total

HEADINGS = ("date", "submissions", "rejected", "already paid", "held", "calls to make")


@click.command()
@date_range
def plan(first: date, last: date) -> None:
    """Show what a backfill would do: submissions, calls already paid, calls to make, estimated cost."""
    settings = load_settings()
    days = days_between(first, last, settings)
    check_landing(settings, days)
    plans, unreadable = plan_days(Pipeline(settings), days)
    rows: dict[str, list[object]] = {
        entry.date: _row(entry) for entry in plans if entry.submissions or entry.rejected
    }
    rows |= {day: [day, "unreadable"] for day in unreadable}
    if not rows:
        click.echo(f"no manifests from {first} to {last}: nothing to do")
        return
    headings = (*HEADINGS, f"estimated cost ({settings.deepxl_currency})")
    click.echo(format_table(headings, [*(rows[day] for day in sorted(rows)), _row(total(plans, settings))]))
    if settings.deepxl_price_per_call is None:
        click.echo("set DEEPXL_PRICE_PER_CALL to see the cost")
    if unreadable:
        raise KycError("; ".join(f"{day}: {error}" for day, error in unreadable.items()))


def _row(entry: PartitionPlan) -> list[object]:
    return [
        entry.date,
        entry.submissions,
        entry.rejected,
        entry.already_paid,
        entry.held,
        entry.calls_to_make,
        "–" if entry.estimated_cost is None else entry.estimated_cost.text,
    ]


def plan_days(pipeline: Pipeline, days: Sequence[str]) -> tuple[list[PartitionPlan], dict[str, KycError]]:
    """The plans of the days, and the error of each day whose manifests cannot be read.

    If ingest would change a day, it is ingested into a temporary lake first, so the plan is the next run's.
    """
    landing, lake = pipeline.settings.kyc_landing, pipeline.lake
    plans: list[PartitionPlan] = []
    unreadable: dict[str, KycError] = {}
    with tempfile.TemporaryDirectory(prefix="kyc-plan-") as folder, pipeline.open_ledger() as ledger:
        scratch = Lake(folder)
        erased = pipeline.erased_subjects(ledger)
        for day in days:
            source = lake
            if not is_ingested(landing, lake, day) or awaits_files(lake, day):
                source = scratch
                try:
                    ingest_partition(landing=landing, lake=lake, date=day, erased=erased, destination=scratch)
                except KycError as error:
                    unreadable[day] = error
                    continue
            plans += plan_partitions(source, ledger, [day], pipeline.settings)
    return plans, unreadable
