"""Paid calls in a Dagster run: how to control them, the run's log, the metadata of a day."""

import contextlib
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger.day_budget import DayBudget
from kyc_pipeline.ledger.models import Spend
from kyc_pipeline.orchestration.jobs import BACKFILL
from kyc_pipeline.orchestration.shown import shown
from kyc_pipeline.orchestration.unfinished import FAULT
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.planning import PartitionPlan, total
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import Progress, Stopped, VerifySummary, estimated_cost, percentile
from kyc_pipeline.wording import plural

if TYPE_CHECKING:  # a code location loads without an HTTP client
    from kyc_pipeline.verify.dispatcher import Timing

LOG_EVERY_SECONDS = 15.0
LOOK_AT_BACKFILL_SECONDS = 2.0
_CANCELLED = {"CANCELING", "CANCELED"}
STOPPED = "stopped"
"""Metadata of a day whose run ended early: why (see `Stopped`)."""


@dataclass
class CallControls:
    """What the command line shares with the runs in its own process. Runs of Dagster use the defaults."""

    stop: StopFlag = field(default_factory=StopFlag)
    """Stops the paid calls; the command line sets it on SIGINT and SIGTERM."""
    progress: Callable[[Progress], None] | None = None
    """Receives the progress of the calls; by default, the run logs it."""
    budget: CallBudget | None = None
    """The budget that all runs share; by default, each run has its own."""
    look_up_first: bool = False
    """Adopts the records in DeepXL's history before anything is sent."""
    timing: "Timing | None" = None
    """The engine's waiting times; tests shorten them."""
    run_ids: list[str] = field(default_factory=list)
    """The runs that the command line has started."""
    skipped: set[str] = field(default_factory=set)
    """Days that a stop request kept from being run, or from being run again."""


@contextlib.contextmanager
def stopped_with_backfill(context: dg.AssetExecutionContext, stop: StopFlag) -> Iterator[None]:
    """Stops the calls of the block as soon as the run's backfill is cancelled.

    Dagster's daemon would terminate the run only when it next looks at its backfills, up to 30 s later.
    """
    backfill = context.run.tags.get(BACKFILL)
    if backfill is None:
        yield
        return
    ended = threading.Event()

    def look() -> bool:
        """Whether there is something left to watch."""
        found = None
        # If the instance cannot be read, the daemon still terminates the run.
        with contextlib.suppress(Exception):
            found = context.instance.get_backfill(backfill)
        if found is None or found.status.value not in _CANCELLED:
            return True
        context.log.warning(f"backfill {backfill} was cancelled: no further call")
        stop.drain()
        return False

    def watch() -> None:
        while not ended.wait(LOOK_AT_BACKFILL_SECONDS) and look():
            pass

    watcher = threading.Thread(target=watch, name="backfill", daemon=True)
    if look():
        watcher.start()
    try:
        yield
    finally:
        ended.set()
        if watcher.is_alive():
            watcher.join()


def log_plan(
    context: dg.AssetExecutionContext,
    plans: Sequence[PartitionPlan],
    settings: Settings,
    day_budget: DayBudget,
) -> None:
    """Logs what the run is about to spend: in total and per day, with an observation per day."""
    max_calls = settings.deepxl_max_calls_per_run
    budget = "" if max_calls is None else f"; the budget is {plural(max_calls, 'call')}"
    if day_budget.left is not None:
        budget += f"; {day_budget}"
    context.log.info(f"plan: {total(plans, settings)}{budget}")
    for plan in plans:
        if len(plans) > 1:
            context.log.info(f"plan of {plan.date}: {plan}")
        figures: dict[str, int | float] = {
            "submissions": plan.submissions,
            "already_paid": plan.already_paid,
            "held": plan.held,
            "calls_to_make": plan.calls_to_make,
        }
        if plan.estimated_cost is not None:
            figures["estimated_cost"] = float(plan.estimated_cost)
        metadata = shown(figures, settings.deepxl_currency)
        context.log_event(
            dg.AssetObservation(VERIFICATION_RESPONSES.name, partition=plan.date, metadata=metadata)
        )


def log_progress(context: dg.AssetExecutionContext) -> Callable[[Progress], None]:
    """A function that logs progress every 15 s, so that the log of 100,000 calls stays readable."""
    last = time.monotonic()

    def log(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LOG_EVERY_SECONDS:
            return
        last = now
        context.log.info(str(progress))
        figures = {
            "settled": progress.done,
            "to_settle": progress.total,
            "calls": progress.calls,
            "retries": progress.retries,
            "uncertain": progress.uncertain,
        }
        context.log_event(
            dg.AssetObservation(VERIFICATION_RESPONSES.name, partition=progress.date, metadata=figures)
        )

    return log


def day_metadata(
    summary: VerifySummary, spend: Spend, latencies: "array[float]", settings: Settings
) -> dict[str, Any]:
    """Figures of one day, which Dagster plots over the partitions.

    Calls, cost and latencies cover all runs of the day, so a later run without calls does not reset them.
    """
    cost = estimated_cost(settings, spend.billable_calls)
    figures: dict[str, Any] = {
        **{outcome.value: count for outcome, count in summary.outcomes.items()},
        "held": summary.held,
        STOPPED: None if summary.stopped is Stopped.NONE else summary.stopped.value,
        "calls": spend.calls,
        "billable_calls": spend.billable_calls,
        "calls_of_this_run": summary.calls,
        "retries": summary.retries,
        "adopted": summary.adopted,
        "estimated_cost": None if cost is None else float(cost),
        "latency_p50_ms": percentile(latencies, 0.50),
        "latency_p95_ms": percentile(latencies, 0.95),
        FAULT: summary.fault,
    }
    return shown(figures, settings.deepxl_currency)
