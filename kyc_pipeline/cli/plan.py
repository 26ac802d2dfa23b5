"""`kyc-pipeline plan`: what a backfill would do and cost. Makes no call and leaves everything as it was."""

import tempfile
from collections.abc import Sequence
from datetime import date

import click

from kyc_pipeline.cli.options import check_landing, date_range, days_between, money, table
from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.manifests import ingest_partition, is_ingested
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings, load_settings
from kyc_pipeline.verify.ledger import Ledger
from kyc_pipeline.verify.plan import PartitionPlan, plan_partitions

HEADINGS = ("date", "submissions", "rejected", "already paid", "held", "calls to make", "estimated cost")


@click.command()
@date_range
def plan(first: date, last: date) -> None:
    """Show what a backfill would do: submissions, calls already paid, calls to make, estimated cost."""
    settings = load_settings()
    days = days_between(first, last, settings)
    check_landing(settings)
    plans, unreadable = plan_days(settings, days)
    shown = [entry for entry in plans if entry.submissions or entry.rejected]
    rows: dict[str, list[object]] = {entry.date: _row(entry.date, [entry]) for entry in shown}
    rows |= {day: [day, "unreadable"] for day in unreadable}
    if not rows:
        click.echo(f"no manifests from {first} to {last}: nothing to do")
        return
    click.echo(table(HEADINGS, [*(rows[day] for day in sorted(rows)), _row("total", plans)]))
    if settings.deepxl_price_per_call is None:
        click.echo("set DEEPXL_PRICE_PER_CALL to see the cost")
    if unreadable:
        raise KycError("; ".join(f"{day}: {error}" for day, error in unreadable.items()))


def plan_days(settings: Settings, days: Sequence[str]) -> tuple[list[PartitionPlan], dict[str, KycError]]:
    """The plan of each day, and the days whose manifests cannot be read, with the reason.

    A day whose manifests are not ingested yet is read into a scratch lake.
    """
    lake = Lake(settings.kyc_lake)
    plans: list[PartitionPlan] = []
    unreadable: dict[str, KycError] = {}
    with tempfile.TemporaryDirectory(prefix="kyc-plan-") as folder, Ledger(settings.kyc_ledger_url) as ledger:
        scratch = Lake(folder)
        erased = Pipeline(settings).erased_subjects(ledger)
        for day in days:
            source = lake
            if not is_ingested(settings.kyc_landing, lake, day):
                source = scratch
                try:
                    ingest_partition(
                        landing=settings.kyc_landing,
                        lake=lake,
                        date=day,
                        erased=erased,
                        destination=scratch,
                    )
                except KycError as error:
                    unreadable[day] = error
                    continue
            plans += plan_partitions(source, ledger, [day], settings)
    return plans, unreadable


def _row(label: str, plans: Sequence[PartitionPlan]) -> list[object]:
    costs = [entry.estimated_cost for entry in plans if entry.estimated_cost is not None]
    return [
        label,
        sum(entry.submissions for entry in plans),
        sum(entry.rejected for entry in plans),
        sum(entry.already_paid for entry in plans),
        sum(entry.held for entry in plans),
        sum(entry.calls_to_make for entry in plans),
        money(sum(costs[1:], costs[0]) if costs else None),
    ]
