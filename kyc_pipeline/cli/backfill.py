"""`kyc-pipeline backfill`: runs partitions through Dagster in this process, with a progress bar."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import TypeVar

import click

from kyc_pipeline.analyze.publish import is_published
from kyc_pipeline.cli.dagster_home import open_instance
from kyc_pipeline.cli.local_run import run_partitions
from kyc_pipeline.cli.options import (
    check_landing,
    date_range,
    display_path,
    force_option,
    is_verbose,
    partitions_between,
)
from kyc_pipeline.cli.plan import read_day_budget
from kyc_pipeline.cli.preflight import check_stores_and_api
from kyc_pipeline.cli.progress import progress_bar
from kyc_pipeline.errors import UNFINISHED, KycError, in_one_line
from kyc_pipeline.ingest.manifests import kept_line
from kyc_pipeline.ingest.state import kept_rows
from kyc_pipeline.lake.storage import Lake, PartitionUnreadable
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.queries import read_spend_of_runs
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings, load_settings
from kyc_pipeline.verify.partition import present_outcomes
from kyc_pipeline.verify.signals import StopFlag, stop_on_signals
from kyc_pipeline.verify.summary import estimated_cost
from kyc_pipeline.vocabulary import LEFT_FOR_LATER, SETTLED, UNDECIDED, Outcome
from kyc_pipeline.wording import plural

SHOWN_SUBMISSIONS = 20
NOT_PUBLISHED = "not published: `kyc-pipeline publish` builds warehouse and report"
STOPPING = "finishing the calls in flight, which are paid for; a second signal abandons them"
ABANDONING = "abandoning the calls in flight: the next run looks them up"
Result = TypeVar("Result")


@click.command()
@date_range
@click.option(
    "--max-calls",
    type=click.IntRange(min=0),
    help="Maximum calls; by default DEEPXL_MAX_CALLS_PER_RUN. It cannot raise DEEPXL_MAX_CALLS_PER_DAY.",
)
@click.option(
    "--look-up-first",
    is_flag=True,
    help="Before anything is sent, look up every submission and adopt the records in DeepXL's history.",
)
@click.option(
    "--no-publish",
    is_flag=True,
    help="Leave warehouse and report as they are; `kyc-pipeline publish` builds them later.",
)
@force_option
@click.pass_context
def backfill(
    context: click.Context,
    first: date,
    last: date,
    max_calls: int | None,
    look_up_first: bool,
    no_publish: bool,
    force: bool,
) -> None:
    """Ingest, verify (one paid call per submission), flatten and publish every day of the range.

    A submission that is already paid for is not sent again.
    """
    settings = load_settings()
    if max_calls is not None:
        settings = settings.model_copy(update={"deepxl_max_calls_per_run": max_calls})
    days = partitions_between(first, last, settings)
    verbose = is_verbose(context)
    code = run_backfill(
        settings, days, look_up_first=look_up_first, publish=not no_publish, force=force, verbose=verbose
    )
    context.exit(code)


def run_backfill(
    settings: Settings,
    days: Sequence[str],
    *,
    look_up_first: bool = False,
    publish: bool = True,
    force: bool = False,
    verbose: bool = False,
    show_paths: bool = True,
) -> int:
    """Runs `days`, prints the results and what is left, and returns the exit code."""
    check_landing(settings, days)
    pipeline = Pipeline(settings)
    check_stores_and_api(pipeline, days, look_up_first=look_up_first)
    instance = open_instance()
    controls = CallControls(look_up_first=look_up_first)
    notes = [] if publish else [NOT_PUBLISHED]
    warnings: list[str] = []
    with progress_bar(len(days)) as controls.progress:
        failures = run_interruptibly(
            controls.stop,
            lambda: run_partitions(
                pipeline,
                days,
                instance,
                controls,
                publish=publish,
                force=force,
                verbose=verbose,
                announce=notes.append,
                warn=warnings.append,
            ),
        )
    for warning in warnings:  # not before the progress bar has ended
        click.echo(warning, err=True)
    results = read_results(pipeline, days)
    left = results.left
    published = publish and show_paths and is_published(settings.kyc_warehouse)
    for day, submission_id, outcome in left[:SHOWN_SUBMISSIONS]:
        click.echo(f"{day}  {submission_id}  {outcome}")
    if len(left) > SHOWN_SUBMISSIONS:
        lists_all = f": {_list_left(days)} lists all" if published else ""
        click.echo(f"… and {len(left) - SHOWN_SUBMISSIONS} more{lists_all}")
    accepted, rejected = results.outcomes.total() - results.kept, results.rejected
    click.echo(f"rows       {accepted} accepted, {rejected} rejected{kept_line(results.kept)}")
    click.echo(f"outcomes   {results}")
    click.echo(spending(pipeline, controls.run_ids))
    if published:
        click.echo(output_paths(settings))
    if rejected and show_paths:
        notes.append(
            f"{rejected} rejected: `kyc-pipeline rejected --from {days[0]} --to {days[-1]}` shows them"
        )
    for note in notes:
        click.echo(note)
    failures += [line for line in results.unreadable if not any(line in failure for failure in failures)]
    if failures:
        raise KycError(in_one_line(failures))  # each once: a day that was run again may fail again
    if line := _why_it_stopped(pipeline, controls, results):
        click.echo(line)
    return UNFINISHED if left or controls.skipped else 0


def _list_left(days: Sequence[str]) -> str:
    """The command that lists the submissions of `days` that are left, as part of a message."""
    outcomes = ", ".join(f"'{outcome}'" for outcome in UNDECIDED)
    where = f"outcome IN ({outcomes}) AND date BETWEEN '{days[0]}' AND '{days[-1]}'"
    return f'`kyc-pipeline query "SELECT date, submission_id, outcome FROM submissions WHERE {where}"`'  # noqa: S608 - shown, not run


def _why_it_stopped(pipeline: Pipeline, controls: CallControls, results: "Results") -> str | None:
    """The line for a backfill that a request or a budget stopped; None if neither did."""
    counts = f"{results.count(SETTLED)} settled, {results.count(LEFT_FOR_LATER)} left"
    if controls.stop.draining:
        if not (results.left or controls.skipped):
            return "the stop request came too late: everything was done already"
        skipped = f", {plural(len(controls.skipped), 'day')} left out" if controls.skipped else ""
        return f"stopped on request; {counts}{skipped}: run the same days again"
    if results.left and controls.budget and controls.budget.is_used_up:
        return f"stopped: the budget of calls is used up; {counts}: run the same days again"
    if results.left and (day_budget := read_day_budget(pipeline)).is_used_up:
        return f"stopped: {day_budget}; {counts}: run the same days again after that"
    return None


def output_paths(settings: Settings) -> str:
    """The paths of warehouse and report, in two lines."""
    warehouse, report = display_path(settings.kyc_warehouse), display_path(settings.kyc_report)
    return f"warehouse  {warehouse}\nreport     {report}"


def spending(pipeline: Pipeline, run_ids: Sequence[str]) -> str:
    """The calls of these runs in one line, from the ledger: it knows them however the runs ended."""
    with pipeline.open_ledger() as ledger:
        spend = read_spend_of_runs(ledger, run_ids)
    cost = estimated_cost(pipeline.settings, spend.billable_calls)
    calls, retries = plural(spend.calls, "call"), plural(spend.retries, "retry", "retries")
    return f"this run   {calls}, {retries}" + ("" if cost is None else f", estimated cost {cost}")


@dataclass
class Results:
    """The rows of some days, and the outcomes of the accepted ones."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    left: list[tuple[str, str, Outcome]] = field(default_factory=list)
    """Date, id and outcome of those that are held, failed or not attempted."""
    rejected: int = 0
    kept: int = 0
    """Accepted ones that have no manifest row any more."""
    unreadable: list[str] = field(default_factory=list)
    """Why the rows of a day are not known."""

    def count(self, outcomes: Iterable[Outcome]) -> int:
        """How many have one of these outcomes."""
        return sum(self.outcomes[outcome] for outcome in outcomes)

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name in Outcome if (count := self.outcomes[name])) or "none"


def read_results(pipeline: Pipeline, days: Sequence[str]) -> Results:
    """The current outcomes, from the ledger: a run that failed may not have written the lake's table."""
    results = Results()
    with pipeline.open_ledger() as ledger:
        for day in days:
            try:
                of_day = _results_of(pipeline.lake, ledger, day)
            except PartitionUnreadable as error:
                results.unreadable.append(str(error))
                continue
            results.outcomes += of_day.outcomes
            results.left += of_day.left
            results.rejected += of_day.rejected
            results.kept += of_day.kept
    return results


def _results_of(lake: Lake, ledger: Ledger, day: str) -> Results:
    results = Results()
    if lake.exists(SUBMISSIONS, day):
        results.kept = kept_rows(lake, day)
    if lake.exists(REJECTED_SUBMISSIONS, day):
        results.rejected = lake.row_count(REJECTED_SUBMISSIONS, day)
    for _, submission_id, outcome, _ in present_outcomes(lake, ledger, [day]):
        results.outcomes[outcome] += 1
        if outcome in UNDECIDED:
            results.left.append((day, submission_id, outcome))
    return results


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
    text = ABANDONING if stop.immediate else STOPPING
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())
