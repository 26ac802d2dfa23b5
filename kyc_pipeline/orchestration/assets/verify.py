"""The asset of the group `verify`: the paid step.

It has no RetryPolicy: the engine itself retries what is surely not processed, and a policy would turn a
cancelled run into a second one.
"""

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import dagster as dg
from pydantic import Field

from kyc_pipeline.deepxl.errors import DeepXLError
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.ledger.models import Spend
from kyc_pipeline.ledger.queries import read_spend
from kyc_pipeline.orchestration.checks.verify import CHECKS, check_partition
from kyc_pipeline.orchestration.failures import fails_plainly
from kyc_pipeline.orchestration.partitions import BACKFILL_POLICY, DayResult, work_through
from kyc_pipeline.orchestration.resources import Pipeline, RunControls
from kyc_pipeline.orchestration.specs import row_count, table_spec
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.plan import PartitionPlan, plan_partitions, total
from kyc_pipeline.verify.reconcile import reconcile
from kyc_pipeline.verify.summary import Progress, Stopped, VerifySummary, estimated_cost, percentile

GROUP = "verify"
POOL = "deepxl"
"""Runs that pay take places in this pool (see dagster.yaml); the pace of the calls is the rate limiter's."""
LOG_EVERY_SECONDS = 15.0


class VerifyConfig(dg.Config):
    """What a run may spend, chosen in the launchpad."""

    max_calls: int | None = Field(
        default=None, ge=0, description="Budget of this run in calls; by default DEEPXL_MAX_CALLS_PER_RUN."
    )
    price_per_call: str | None = Field(
        default=None, description="Price of one call, a decimal; by default DEEPXL_PRICE_PER_CALL."
    )
    dry_run: bool = Field(
        default=False, description="Only log what the run would do and cost; nothing is called or written."
    )

    def apply(self, settings: Settings) -> Settings:
        """`settings` with what this run overrides."""
        changes: dict[str, object] = {}
        if self.max_calls is not None:
            changes["deepxl_max_calls_per_run"] = self.max_calls
        if self.price_per_call is not None:
            changes["deepxl_price_per_call"] = self._price()
        return settings.model_copy(update=changes)

    def _price(self) -> Decimal:
        try:
            price = Decimal(self.price_per_call or "")
        except InvalidOperation:
            price = Decimal(-1)
        if not price.is_finite() or price < 0:
            raise dg.Failure("price_per_call: must be a decimal such as 0.50", allow_retries=False)
        return price


def verify_assets(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """`verification_responses`, from `submissions` and one paid call each."""

    @dg.multi_asset(
        name="verify",
        specs=[
            table_spec(
                VERIFICATION_RESPONSES,
                group=GROUP,
                partitions=partitions,
                deps=[SUBMISSIONS.name],
                skippable=True,
            )
        ],
        check_specs=[check.spec() for check in CHECKS],
        backfill_policy=BACKFILL_POLICY,
        pool=POOL,
        can_subset=True,  # so that a dry run may end without the asset and its checks
    )
    @fails_plainly
    def verify(
        context: dg.AssetExecutionContext,
        config: VerifyConfig,
        pipeline: dg.ResourceParam[Pipeline],
        controls: dg.ResourceParam[RunControls],
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        # Imported here: an HTTP client takes half a second, and a code location loads without one.
        from kyc_pipeline.verify.dispatcher import Timing
        from kyc_pipeline.verify.engine import verify_partition

        settings = config.apply(pipeline.settings)
        lake = pipeline.lake
        with pipeline.open_ledger() as ledger:
            plans = plan_partitions(lake, ledger, list(context.partition_keys), settings)
            _tell_plan(context, plans, settings)
            if config.dry_run:
                return
            budget = controls.budget or CallBudget(settings.deepxl_max_calls_per_run)

            def work(day: str) -> DayResult:
                try:
                    summary = verify_partition(
                        settings=settings,
                        lake=lake,
                        ledger=ledger,
                        date=day,
                        run_id=context.run.run_id,
                        stop=controls.stop,
                        progress=controls.progress or _log_progress(context),
                        budget=budget,
                        timing=controls.timing or Timing(),
                    )
                except DeepXLError:
                    # Every further call would meet it: the days that remain are accounted for without one.
                    budget.exhaust()
                    raise
                if summary.stopped is Stopped.CIRCUIT_OPEN:
                    budget.exhaust()
                context.log.info(f"{day}: {summary}")
                return DayResult(
                    metadata={
                        VERIFICATION_RESPONSES.name: {
                            **_metadata(summary, read_spend(ledger, day), settings),
                            **_latencies(lake, day),
                        }
                    },
                    checks=check_partition(reconcile(lake, ledger, day), summary),
                )

            yield from work_through(context, work)

    return verify


def _metadata(summary: VerifySummary, spend: Spend, settings: Settings) -> dict[str, Any]:
    """Figures of one day, plotted by Dagster over the partitions.

    Calls and cost are the day's, over all its runs: one that had nothing to pay hides nothing.
    """
    cost = estimated_cost(settings, spend.billable_calls)
    figures: dict[str, Any] = {
        **row_count(sum(summary.outcomes.values())),
        **{outcome.value: count for outcome, count in summary.outcomes.items()},
        "held": summary.held,
        "calls": spend.calls,
        "billable_calls": spend.billable_calls,
        "calls_of_this_run": summary.calls,
        "retries": summary.retries,
        "adopted": summary.adopted,
    }
    return figures if cost is None else {**figures, "estimated_cost": float(cost)}


def _latencies(lake: Lake, day: str) -> dict[str, float]:
    """Percentiles of the day's answers, whichever run got them."""
    column = lake.read(VERIFICATION_RESPONSES, day, ["latency_ms"])["latency_ms"]
    found = array("d", (float(value) for value in column.to_pylist() if value is not None))
    shares = {"latency_p50_ms": percentile(found, 0.50), "latency_p95_ms": percentile(found, 0.95)}
    return {name: value for name, value in shares.items() if value is not None}


def _tell_plan(context: dg.AssetExecutionContext, plans: Sequence[PartitionPlan], settings: Settings) -> None:
    """What the run is about to spend: its first line in the log, and for each day an observation."""
    most = settings.deepxl_max_calls_per_run
    budget = "" if most is None else f"; the budget is {most} calls"
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
        context.log_event(
            dg.AssetObservation(VERIFICATION_RESPONSES.name, partition=plan.date, metadata=figures)
        )


def _log_progress(context: dg.AssetExecutionContext) -> Callable[[Progress], None]:
    """Tells by time, not by call: a run of 100,000 calls stays readable."""
    last = time.monotonic()

    def log(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LOG_EVERY_SECONDS:
            last = now
            context.log.info(str(progress))
            context.log_event(
                dg.AssetObservation(
                    VERIFICATION_RESPONSES.name,
                    partition=progress.date,
                    metadata={
                        "settled": progress.done,
                        "to_settle": progress.total,
                        "calls": progress.calls,
                        "retries": progress.retries,
                        "uncertain": progress.uncertain,
                    },
                )
            )

    return log
