"""`kyc-pipeline backfill`: runs partitions through Dagster in this process, with a progress bar."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import TypeVar

import click
import pyarrow.compute as pc

from kyc_pipeline.cli import EXIT_UNFINISHED
from kyc_pipeline.cli.local_run import open_instance, run_partitions
from kyc_pipeline.cli.options import (
    check_landing,
    date_range,
    days_between,
    display_path,
    force_option,
    is_verbose,
)
from kyc_pipeline.cli.preflight import check_api_when_needed
from kyc_pipeline.cli.progress import progress_bar
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.ledger.decisions import list_held
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings, load_settings
from kyc_pipeline.verify.signals import StopFlag, stop_on_signals
from kyc_pipeline.verify.summary import Progress
from kyc_pipeline.vocabulary import Outcome
from kyc_pipeline.wording import Money, plural

UNFINISHED = (Outcome.UNCERTAIN, Outcome.FAILED, Outcome.NOT_ATTEMPTED)
LISTED = 20
STOPPING = "waiting for the calls in flight, which are paid for; a second signal gives them up"
GIVING_UP = "giving up the calls in flight: the next run looks them up"
Result = TypeVar("Result")


@click.command()
@date_range
@click.option(
    "--max-calls",
    type=click.IntRange(min=0),
    help="Maximum calls; by default DEEPXL_MAX_CALLS_PER_RUN.",
)
@force_option
@click.pass_context
def backfill(context: click.Context, first: date, last: date, max_calls: int | None, force: bool) -> None:
    """Ingest, verify (one paid call per submission), flatten and publish every day of the range.

    A submission that is already paid for is not sent again.
    """
    settings = load_settings()
    if max_calls is not None:
        settings = settings.model_copy(update={"deepxl_max_calls_per_run": max_calls})
    days = days_between(first, last, settings)
    context.exit(run_backfill(settings, days, force=force, verbose=is_verbose(context)))


@dataclass
class Spending:
    """The calls of a backfill, by day."""

    days: dict[str, Progress] = field(default_factory=dict)

    def __str__(self) -> str:
        days = self.days.values()
        costs = [day.estimated_cost for day in days if day.estimated_cost is not None]
        calls = plural(sum(day.calls for day in days), "call")
        retries = plural(sum(day.retries for day in days), "retry", "retries")
        cost = Money(sum((cost.amount for cost in costs), Decimal(0)), costs[0].currency) if costs else None
        return f"{calls}, {retries}" + (f", estimated cost {cost}" if cost else "")


def run_backfill(
    settings: Settings,
    days: Sequence[str],
    *,
    force: bool = False,
    verbose: bool = False,
    show_paths: bool = True,
) -> int:
    """Runs `days`, prints the results and what is left, and returns the exit code."""
    check_landing(settings, days)
    pipeline = Pipeline(settings)
    check_api_when_needed(pipeline, days)
    instance = open_instance()
    spending, controls = Spending(), CallControls()
    notes: list[str] = []
    with progress_bar(len(days)) as update_bar:

        def show(progress: Progress) -> None:
            spending.days[progress.date] = progress
            update_bar(progress)

        controls.progress = show
        failures = run_interruptibly(
            controls.stop,
            lambda: run_partitions(
                pipeline, days, instance, controls, force=force, verbose=verbose, announce=notes.append
            ),
        )
    left = unfinished(pipeline, days)
    for day, submission_id, outcome in left[:LISTED]:
        click.echo(f"{day}  {submission_id}  {outcome}")
    if len(left) > LISTED:
        click.echo(f"… and {len(left) - LISTED} more, in verification_responses")
    click.echo(row_counts(pipeline.lake, days))
    click.echo(f"this run   {spending}")
    if show_paths and settings.kyc_warehouse.exists():
        click.echo(output_paths(settings))
    for note in notes:
        click.echo(note)
    if failures:
        raise KycError("; ".join(failures))
    if controls.stop.draining:
        click.echo("stopped on request: run the same days again to continue")
    elif left and controls.budget and controls.budget.is_used_up:
        click.echo("stopped: the budget of calls is used up; run the same days again to continue")
    return EXIT_UNFINISHED if left or controls.stop.draining else 0


def output_paths(settings: Settings) -> str:
    """The paths of warehouse and report, in two lines."""
    warehouse, report = display_path(settings.kyc_warehouse), display_path(settings.kyc_report)
    return f"warehouse  {warehouse}\nreport     {report}"


def row_counts(lake: Lake, days: Sequence[str]) -> str:
    """The manifest rows of `days` and their outcomes, counted, in two lines."""
    count: Counter[str] = Counter()
    for day in days:
        for table in (SUBMISSIONS, REJECTED_SUBMISSIONS):
            if lake.exists(table, day):
                count[table.name] += lake.row_count(table, day)
        if lake.exists(VERIFICATION_RESPONSES, day):
            outcomes = lake.read(VERIFICATION_RESPONSES, day, ["outcome"])["outcome"]
            count.update(str(outcome) for outcome in outcomes.to_pylist())
    found = ", ".join(f"{count[outcome]} {outcome}" for outcome in Outcome if count[outcome])
    accepted, rejected = count[SUBMISSIONS.name], count[REJECTED_SUBMISSIONS.name]
    return f"rows       {accepted} accepted, {rejected} rejected\noutcomes   {found or 'none'}"


def run_interruptibly(stop: StopFlag, work: Callable[[], Result]) -> Result:
    """The result of `work`. SIGINT and SIGTERM set `stop`, in two stages. Main thread only.

    `work` runs in another thread, where Dagster does not handle signals. In the main thread, Dagster would
    turn the first signal into a failed step, and later runs would make paid calls.
    """
    announced = stop.watched(lambda: _announce(stop))
    with stop_on_signals(stop), announced, ThreadPoolExecutor(max_workers=1) as runner:
        return runner.submit(work).result()


def _announce(stop: StopFlag) -> None:
    """Prints what the signal did. Unbuffered, because the signal may have interrupted a print."""
    text = GIVING_UP if stop.immediate else STOPPING
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())


def unfinished(pipeline: Pipeline, days: Sequence[str]) -> list[tuple[str, str, str]]:
    """(date, submission id, outcome) of the submissions that are held, failed or not attempted.

    Leaves out abandoned submissions, which are `uncertain` but not held.
    """
    lake = pipeline.lake
    with pipeline.open_ledger() as ledger:
        held = {row.submission_id for row in list_held(ledger)}
    found: list[tuple[str, str, str]] = []
    for day in days:
        if not lake.exists(VERIFICATION_RESPONSES, day):
            continue
        rows = lake.read(VERIFICATION_RESPONSES, day, ["submission_id", "outcome"])
        rows = rows.filter(pc.field("outcome").isin([outcome.value for outcome in UNFINISHED]))
        found += [
            (day, row["submission_id"], row["outcome"])
            for row in rows.to_pylist()
            if row["outcome"] != Outcome.UNCERTAIN or row["submission_id"] in held
        ]
    return found
