"""`kyc-pipeline plan`: what a backfill would do and cost. Makes no call and changes nothing."""

import tempfile
from collections.abc import Sequence
from datetime import date

import click

from kyc_pipeline.cli.options import check_landing, date_range, days_between, format_table
from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.manifests import awaits_files, ingest_partition, is_ingested
from kyc_pipeline.ingest.state import turns
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS
from kyc_pipeline.orchestration.partitions import batches
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import load_settings
from kyc_pipeline.verify.planning import PartitionPlan, plan_partitions, total
from kyc_pipeline.vocabulary import Reason

OF_DOCUMENTS = (
    Reason.FILE_NOT_FOUND,
    Reason.FILE_EMPTY,
    Reason.FILE_TOO_LARGE,
    Reason.UNSUPPORTED_FILE_TYPE,
    Reason.UNREADABLE_IMAGE,
    Reason.PATH_OUTSIDE_DOCUMENTS,
)
"""Reasons that no longer apply once a sound file has the same name."""
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

    Days that the run's ingest may change are ingested into a temporary lake, in the order of the run, because
    a day may get an id that another one gives up. So the plan is what the run does.
    """
    landing, lake = pipeline.settings.kyc_landing, pipeline.lake
    unreadable: dict[str, KycError] = {}
    with tempfile.TemporaryDirectory(prefix="kyc-plan-") as folder, pipeline.open_ledger() as ledger:
        scratch = Lake(folder)
        erased = pipeline.erased_subjects(ledger)

        def plan_of(day: str) -> PartitionPlan:
            source = scratch if scratch.exists(SUBMISSIONS, day) else lake
            return plan_partitions(source, ledger, [day], pipeline.settings)[0]

        def is_outdated(day: str) -> bool:
            return day not in unreadable and not is_ingested(landing, lake, day, scratch)

        def ingest(day: str) -> None:
            try:
                ingest_partition(landing=landing, lake=lake, date=day, erased=erased, destination=scratch)
            except KycError as error:
                unreadable[day] = error

        for batch in batches(days):
            for day in turns(batch, is_outdated):
                # What was sent stays. Other rows may change with their documents, though no manifest does.
                if is_outdated(day) or awaits_files(lake, day, OF_DOCUMENTS) or plan_of(day).calls_to_make:
                    ingest(day)
        for day in filter(is_outdated, days):
            ingest(day)
        return [plan_of(day) for day in days if day not in unreadable], unreadable
