"""The metrics for Prometheus, read from the ledger and from Dagster at each scrape.

So they are correct whichever processes make the calls, and runs export nothing. No metric names a submission,
a person or a run.
"""

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import dagster as dg
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kyc_pipeline.days import start_of_day
from kyc_pipeline.errors import KycError
from kyc_pipeline.ledger.activity import read_activity
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import leased_partitions
from kyc_pipeline.ledger.publications import copies_before_erasure
from kyc_pipeline.ledger.queries import read_held, read_spend_of_runs, read_spend_since
from kyc_pipeline.ledger.rate_limits import list_rate_limits
from kyc_pipeline.ledger.times import SECOND
from kyc_pipeline.orchestration.jobs import QUEUED, STARTED
from kyc_pipeline.orchestration.publication import WAREHOUSE
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.gate import BREAKER_THRESHOLD
from kyc_pipeline.verify.summary import estimated_cost

_PAGE = 1000


class PipelineCollector(Collector):
    """Reads everything anew for each scrape."""

    def __init__(self, pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
        self._pipeline = pipeline
        self._instance = instance

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry must not read ledger and instance before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics. If the ledger cannot be read, those of Dagster and `kyc_ledger_up 0`."""
        yield from _dagster_metrics(self._instance)
        metrics: list[Metric] = []
        try:
            with self._pipeline.open_ledger() as ledger:
                if ledger.exists():
                    metrics = list(_ledger_metrics(ledger, self._pipeline.settings))
            is_up = True
        except KycError:
            is_up = False
        yield _gauge("kyc_ledger_up", "1 if the ledger can be read and belongs to the lake.", is_up)
        yield from metrics


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=float(value))


def _dagster_metrics(instance: dg.DagsterInstance) -> Iterator[Metric]:
    queued = instance.get_run_records(dg.RunsFilter(statuses=QUEUED), limit=_PAGE, ascending=True)
    oldest = max(time.time() - queued[0].create_timestamp.timestamp(), 0.0) if queued else 0.0
    yield _gauge("kyc_oldest_queued_run_seconds", "How long the oldest queued run waits; 0 if none.", oldest)
    yield _gauge("kyc_queued_runs", "Runs that wait for their start.", len(queued))
    started = instance.get_runs_count(dg.RunsFilter(statuses=STARTED))
    yield _gauge("kyc_runs_under_way", "Runs that are starting, started or being cancelled.", started)
    published = instance.get_latest_materialization_event(WAREHOUSE)
    if published is not None:
        yield _gauge(
            "kyc_last_publication_timestamp_seconds",
            "When the warehouse was last published, in seconds since the epoch.",
            published.timestamp,
        )


def _ledger_metrics(ledger: Ledger, settings: Settings) -> Iterator[Metric]:
    activity = read_activity(ledger, BREAKER_THRESHOLD)
    calls = CounterMetricFamily("kyc_calls", "Claims of all time, by result.", labels=["result"])
    for result, count in activity.calls.items():
        calls.add_metric([result], count)
    yield calls
    outcomes = GaugeMetricFamily(
        "kyc_submissions", "Submissions ever claimed, by outcome.", labels=["outcome"]
    )
    for outcome, count in activity.submissions.items():
        outcomes.add_metric([outcome.value], count)
    yield outcomes
    held = read_held(ledger)
    yield _gauge(
        "kyc_held_submissions",
        "Uncertain submissions that wait for a decision.",
        sum(day.submissions for day in held),
    )
    now = datetime.now(UTC)
    oldest = max(((now - day.since).total_seconds() for day in held), default=0.0)
    yield _gauge("kyc_oldest_held_seconds", "Age of the oldest held submission; 0 if none.", max(oldest, 0.0))
    yield _gauge(
        "kyc_oldest_open_claim_seconds",
        "Age of the oldest call without a result; 0 if none.",
        activity.oldest_claim,
    )
    yield _gauge(
        "kyc_pace_calls_per_second",
        "Calls per second that ended, averaged over the last minute.",
        activity.calls_per_second,
    )
    yield _gauge(
        "kyc_failures_in_a_row",
        f"Failures since the last call that succeeded, at most {BREAKER_THRESHOLD}.",
        activity.failures_in_a_row,
    )
    yield _gauge(
        "kyc_publications_before_erasure",
        "Published warehouses, on any host, from before the last erasure: they may still contain the person.",
        len(copies_before_erasure(ledger)),
    )
    under_way = leased_partitions(ledger)
    # The lease of another run says nothing: ingest and erase hold leases, too.
    calls_fail = activity.failures_in_a_row >= BREAKER_THRESHOLD
    is_open = calls_fail and activity.last_run in under_way.values()
    yield _gauge(
        "kyc_breaker_open",
        "1 if the run that made the last calls is under way, and enough of them failed to open its breaker.",
        is_open,
    )
    paused = max((limit.paused_until - limit.now for limit in list_rate_limits(ledger).values()), default=0)
    yield _gauge(
        "kyc_paused_seconds", "How long DeepXL asked to pause; 0 if it did not.", max(paused, 0) / SECOND
    )
    spend = read_spend_since(ledger, start_of_day(now))
    left = []
    if settings.deepxl_max_calls_per_day is not None:
        left.append(settings.deepxl_max_calls_per_day - spend.calls)
    if settings.deepxl_max_calls_per_run is not None and under_way:
        made = [read_spend_of_runs(ledger, [run]).calls for run in set(under_way.values())]
        left.append(settings.deepxl_max_calls_per_run - max(made))
    if left:
        yield _gauge(
            "kyc_budget_left_calls",
            "Calls left: the lower of DEEPXL_MAX_CALLS_PER_DAY and, of the run with the least left, "
            "DEEPXL_MAX_CALLS_PER_RUN.",
            max(min(left), 0),
        )
    yield _gauge("kyc_calls_today", "Calls since 00:00 UTC.", spend.calls)
    yield _gauge(
        "kyc_billable_calls_today", "Calls since 00:00 UTC that are, or may be, billed.", spend.billable_calls
    )
    cost = estimated_cost(settings, spend.billable_calls)
    if cost is not None:
        money = GaugeMetricFamily("kyc_spend_today", "Their estimated cost.", labels=["currency"])
        money.add_metric([cost.currency], float(cost))
        yield money
