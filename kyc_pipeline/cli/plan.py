"""`kyc-pipeline plan`: what a backfill would do and cost. Makes no call and leaves everything as it was."""

from collections.abc import Sequence
from datetime import date

import click

from kyc_pipeline.cli.options import check_landing, date_range, days_between, money, table
from kyc_pipeline.cli.planning import plan_days
from kyc_pipeline.errors import KycError
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import load_settings
from kyc_pipeline.verify.plan import PartitionPlan

HEADINGS = ("date", "submissions", "rejected", "already paid", "held", "calls to make", "estimated cost")


@click.command()
@date_range
def plan(first: date, last: date) -> None:
    """Show what a backfill would do: submissions, calls already paid, calls to make, estimated cost."""
    settings = load_settings()
    days = days_between(first, last, settings)
    check_landing(settings, days)
    plans, unreadable = plan_days(Pipeline(settings), days)
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
