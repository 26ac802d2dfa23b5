"""`kyc-pipeline backfill`: partitions in one process, through Dagster, with a progress bar."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import TypeVar

import click
import pyarrow.compute as pc

from kyc_pipeline.cli import EXIT_UNFINISHED
from kyc_pipeline.cli.local_run import open_instance, run_partitions
from kyc_pipeline.cli.options import check_landing, date_range, days_between, money, shown
from kyc_pipeline.cli.preflight import check_api_when_needed
from kyc_pipeline.cli.progress import progress_bar
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.ledger.decisions import list_held
from kyc_pipeline.orchestration.resources import Pipeline, RunControls
from kyc_pipeline.settings import Settings, load_settings
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.signals import StopFlag, stop_on_signals
from kyc_pipeline.verify.summary import Progress
from kyc_pipeline.vocabulary import Outcome

UNFINISHED = (Outcome.UNCERTAIN, Outcome.FAILED, Outcome.NOT_ATTEMPTED)
LISTED = 20
STOPPING = "stopping: calls in flight end, since they are paid for; a second signal gives them up"
GIVING_UP = "giving up the calls in flight: they are held until the next run looks for them"
Result = TypeVar("Result")


@click.command()
@date_range
@click.option("--max-calls", type=click.IntRange(min=0), help="Budget; else DEEPXL_MAX_CALLS_PER_RUN.")
@click.pass_context
def backfill(context: click.Context, first: date, last: date, max_calls: int | None) -> None:
    """Ingest, verify (one paid call a submission), flatten and publish every day of the range.

    Days that are already paid make no call.
    """
    settings = load_settings()
    if max_calls is not None:
        settings = settings.model_copy(update={"deepxl_max_calls_per_run": max_calls})
    days = days_between(first, last, settings)
    verbose = bool(context.find_root().params.get("verbose"))
    context.exit(run_backfill(settings, days, verbose=verbose))


@dataclass
class Spent:
    """The calls of a backfill, as the engine tells of them."""

    days: dict[str, Progress] = field(default_factory=dict)

    def __str__(self) -> str:
        last = self.days.values()
        costs = [day.estimated_cost for day in last if day.estimated_cost is not None]
        calls = f"{sum(day.calls for day in last)} calls, {sum(day.retries for day in last)} retries"
        return calls + (f", estimated cost {money(sum(costs[1:], costs[0]))}" if costs else "")


def run_backfill(settings: Settings, days: Sequence[str], *, verbose: bool = False) -> int:
    """Runs `days`, prints what was done and what is left; returns the exit code."""
    check_landing(settings, days)
    pipeline = Pipeline(settings)
    check_api_when_needed(pipeline, days)
    instance = open_instance()
    spent = Spent()
    with progress_bar(len(days)) as show:

        def progress(progress: Progress) -> None:
            spent.days[progress.date] = progress
            show(progress)

        budget = CallBudget(settings.deepxl_max_calls_per_run)
        controls = RunControls(budget=budget, progress=progress)
        log_level = "INFO" if verbose else "CRITICAL"
        report = stoppable(
            controls.stop, lambda: run_partitions(pipeline, controls, days, instance, log_level=log_level)
        )
    left = unfinished(pipeline, days)
    for day, submission_id, outcome in left[:LISTED]:
        click.echo(f"{day}  {submission_id}  {outcome}")
    if len(left) > LISTED:
        click.echo(f"… and {len(left) - LISTED} more, in verification_responses")
    click.echo(accounts(pipeline.lake, days))
    click.echo(f"this run   {spent}")
    if settings.kyc_warehouse.exists():
        click.echo(places(settings))
    if report.failures:
        raise KycError("; ".join(report.failures))
    if controls.stop.draining:
        click.echo("stopped on request: run the same days again to go on")
    elif left and budget.is_used_up:
        click.echo("stopped: the budget of calls is used up; run the same days again to go on")
    return EXIT_UNFINISHED if left or controls.stop.draining else 0


def places(settings: Settings) -> str:
    """Where the results are, in two lines."""
    return f"warehouse  {shown(settings.kyc_warehouse)}\nreport     {shown(settings.kyc_report)}"


def accounts(lake: Lake, days: Sequence[str]) -> str:
    """What became of the manifest rows of `days`, in two lines."""
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


def stoppable(stop: StopFlag, work: Callable[[], Result]) -> Result:
    """`work`'s result; SIGINT and SIGTERM ask it to stop by `stop`, in two stages. Main thread only.

    It runs in a thread, where Dagster leaves signals alone: in the main thread it would make of the first
    one a failed step, and the runs that come after it would go on paying.
    """
    told = stop.watched(lambda: _tell(stop))
    with stop_on_signals(stop), told, ThreadPoolExecutor(max_workers=1) as runner:
        return runner.submit(work).result()


def _tell(stop: StopFlag) -> None:
    """What the signal did. Written past Python's own buffers: a signal may come in the middle of a print."""
    text = GIVING_UP if stop.immediate else STOPPING
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())


def unfinished(pipeline: Pipeline, days: Sequence[str]) -> list[tuple[str, str, str]]:
    """(date, submission id, outcome) of what is held, failed or not attempted.

    What an operator abandoned stays `uncertain` and is not held any more: it is no unfinished work.
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
