"""The asset of the group `verify`: the paid step.

It has no RetryPolicy: the engine retries calls that were certainly not processed, and with a policy Dagster
would restart a cancelled run.
"""

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

import dagster as dg
from pydantic import Field

from kyc_pipeline.deepxl.call_errors import DeepXLError
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.ledger.queries import read_spend
from kyc_pipeline.orchestration.checks import check_specs
from kyc_pipeline.orchestration.checks.verify import CHECKS, check_partition
from kyc_pipeline.orchestration.paid_calls import CallControls, day_metadata, log_plan, log_progress
from kyc_pipeline.orchestration.partitions import BACKFILL_POLICY, DayResult, work_through
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.orchestration.specs import table_spec
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.planning import plan_partitions
from kyc_pipeline.verify.reconcile import reconcile
from kyc_pipeline.verify.summary import Stopped

GROUP = "verify"
POOL = "deepxl"
"""Limits concurrent runs with paid calls (see dagster.yaml). The rate limiter limits the calls."""


class VerifyConfig(dg.Config):
    """The run's spending limits, set in the launchpad."""

    max_calls: int | None = Field(
        default=None,
        ge=0,
        description="Maximum calls of this run; by default DEEPXL_MAX_CALLS_PER_RUN.",
    )
    price_per_call: str | None = Field(
        default=None, description="Price of one call as a decimal; by default DEEPXL_PRICE_PER_CALL."
    )
    look_up_first: bool = Field(
        default=False,
        description="Before anything is sent, look up every submission and adopt the records in DeepXL's "
        "history. With a restored ledger, the days up to its restore do so anyway.",
    )
    dry_run: bool = Field(
        default=False, description="Log what the run would do and cost; make no call and write nothing."
    )

    def apply(self, settings: Settings) -> Settings:
        """`settings` with this run's overrides."""
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


def verify_assets(
    partitions: dg.PartitionsDefinition[str], controls: CallControls | None = None
) -> dg.AssetsDefinition:
    """`verification_responses`: one paid call per submission.

    All runs in this process share `controls`; without them, each run has its own.
    """

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
        check_specs=check_specs(CHECKS),
        backfill_policy=BACKFILL_POLICY,
        pool=POOL,
        can_subset=True,  # a dry run yields neither the asset nor its checks
    )
    @safe_errors
    def verify(
        context: dg.AssetExecutionContext, config: VerifyConfig, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        # Imported here because an HTTP client takes half a second to import.
        from kyc_pipeline.verify.engine import verify_partition

        settings = config.apply(pipeline.settings)
        lake, run = pipeline.lake, controls or CallControls()
        with pipeline.open_ledger() as ledger:
            plans = plan_partitions(lake, ledger, list(context.partition_keys), settings)
            log_plan(context, plans, settings)
            if config.dry_run:
                return
            budget = run.budget or CallBudget(settings.deepxl_max_calls_per_run)

            def work(day: str) -> DayResult:
                try:
                    summary = verify_partition(
                        settings=settings,
                        lake=lake,
                        ledger=ledger,
                        date=day,
                        run_id=context.run.run_id,
                        stop=run.stop,
                        progress=run.progress or log_progress(context),
                        budget=budget,
                        timing=run.timing,
                        look_up_first=config.look_up_first or run.look_up_first,
                        # The plan has just read the first day; the others may change before their turn.
                        planned=plans[0].scan if day == plans[0].date else None,
                    )
                except DeepXLError:
                    # Any further call would fail too: the other days record their outcomes without one.
                    budget.exhaust()
                    raise
                if summary.stopped is Stopped.CIRCUIT_OPEN:
                    budget.exhaust()
                context.log.info(f"{day}: {summary}")
                accounts = reconcile(lake, ledger, day)
                metadata = day_metadata(summary, read_spend(ledger, day), accounts.latencies, settings)
                return DayResult(
                    metadata={VERIFICATION_RESPONSES.name: metadata},
                    checks=check_partition(accounts, summary),
                )

            yield from work_through(context, work)

    return verify
