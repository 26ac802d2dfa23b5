"""`kyc-pipeline plan`: what a backfill would do and cost. Makes no call and leaves everything as it was."""

import tempfile
from collections.abc import Sequence
from datetime import date

import click

from kyc_pipeline.cli.options import date_range, days_between, table
from kyc_pipeline.ingest.manifests import ingest_partition, manifest_identity, require_landing
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS
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
    require_landing(settings.kyc_landing)
    plans = plan_days(settings, days)
    shown = [entry for entry in plans if entry.submissions or entry.rejected]
    click.echo(table(HEADINGS, [*(_row(entry.date, [entry]) for entry in shown), _row("total", plans)]))
    if settings.deepxl_price_per_call is None:
        click.echo("set DEEPXL_PRICE_PER_CALL to see the cost")


def plan_days(settings: Settings, days: Sequence[str]) -> list[PartitionPlan]:
    """The plan of each day. A day whose manifests are not ingested yet is read into a scratch lake."""
    lake = Lake(settings.kyc_lake)
    plans: list[PartitionPlan] = []
    with tempfile.TemporaryDirectory(prefix="kyc-plan-") as folder, Ledger(settings.kyc_ledger_url) as ledger:
        scratch = Lake(folder)
        for day in days:
            source = lake
            if not _is_ingested(settings, lake, day):
                ingest_partition(landing=settings.kyc_landing, lake=lake, date=day, destination=scratch)
                source = scratch
            plans += plan_partitions(source, ledger, [day], settings)
    return plans


def _is_ingested(settings: Settings, lake: Lake, day: str) -> bool:
    if not lake.exists(SUBMISSIONS, day):
        return False
    return lake.metadata(SUBMISSIONS, day).get("manifests") == manifest_identity(settings.kyc_landing, day)


def _row(label: str, plans: Sequence[PartitionPlan]) -> list[object]:
    costs = [entry.estimated_cost for entry in plans if entry.estimated_cost is not None]
    return [
        label,
        sum(entry.submissions for entry in plans),
        sum(entry.rejected for entry in plans),
        sum(entry.already_paid for entry in plans),
        sum(entry.held for entry in plans),
        sum(entry.calls_to_make for entry in plans),
        sum(costs[1:], costs[0]) if costs else "–",
    ]
