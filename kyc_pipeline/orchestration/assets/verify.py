"""The asset of the group `verify`: the paid step.

It has no RetryPolicy: the engine retries calls that were certainly not processed, and with a policy Dagster
would restart a cancelled run.
"""

import contextlib
from collections.abc import Iterator
from decimal import Decimal

import dagster as dg
from pydantic import Field

from kyc_pipeline.checks import CheckResult
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.day_budget import DayBudget
from kyc_pipeline.ledger.decisions import list_held
from kyc_pipeline.ledger.queries import read_spend
from kyc_pipeline.orchestration.checks import check_events, check_specs
from kyc_pipeline.orchestration.checks.verify import CHECKS, check_partition
from kyc_pipeline.orchestration.paid_calls import (
    CallControls,
    day_metadata,
    log_plan,
    log_progress,
    stopped_with_backfill,
)
from kyc_pipeline.orchestration.partitions import (
    BACKFILL_POLICY,
    DayResult,
    StepEvent,
    days_to_check,
    selected_checks,
    work_through,
)
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.orchestration.specs import VERIFY, partition_metadata, table_spec
from kyc_pipeline.orchestration.takeover import take_over
from kyc_pipeline.orchestration.unfinished import day_counts, day_outcomes, in_words
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.planning import plan_partitions
from kyc_pipeline.verify.reconcile import reconcile
from kyc_pipeline.verify.summary import VerifySummary
from kyc_pipeline.wording import run_day_again

POOL = "deepxl"
"""Limits concurrent runs with paid calls (see dagster.yaml). The rate limiter limits the calls."""


class VerifyConfig(dg.Config):
    """What one run may do, set in the launchpad. Anything left out has the value of its setting."""

    max_calls: int | None = Field(
        default=None,
        ge=0,
        description="Budget: maximum calls of this run, from 0; by default DEEPXL_MAX_CALLS_PER_RUN. It "
        "cannot raise DEEPXL_MAX_CALLS_PER_DAY.",
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Calls in flight, from 1 to 1024; by default DEEPXL_MAX_CONCURRENCY.",
    )
    price_per_call: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Price of one call for the cost figures, such as 0.50; by default DEEPXL_PRICE_PER_CALL.",
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
        price = self.price_per_call
        changes = {
            "deepxl_max_calls_per_run": self.max_calls,
            "deepxl_max_concurrency": self.max_concurrency,
            # The decimal that was typed, not its binary approximation.
            "deepxl_price_per_call": None if price is None else Decimal(str(price)),
        }
        given = {name: value for name, value in changes.items() if value is not None}
        return settings.model_copy(update=given)


@contextlib.contextmanager
def logging_termination(
    context: dg.AssetExecutionContext, lake: Lake, ledger: Ledger, day: str
) -> Iterator[None]:
    """If the run is terminated, logs how many of the day's submissions are settled and left."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        # No other error may replace the interruption, or the run would continue with the next day.
        with contextlib.suppress(Exception):
            counts = in_words(day_counts(lake, ledger, day))
            context.log.warning(f"{day}: terminated; {counts}: {run_day_again(day)}")
        raise


def check_stores(lake: Lake, ledger: Ledger, day: str) -> list[CheckResult]:
    """The checks of a day as lake and ledger are now. Makes no call and writes nothing."""
    reconciliation = reconcile(lake, ledger, day)
    held = list_held(ledger, day)
    return check_partition(
        reconciliation, VerifySummary(day, day_outcomes(lake, day), calls_to_make=0, held=len(held))
    )


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
                group=VERIFY,
                partitions=partitions,
                deps=[SUBMISSIONS.name],
                skippable=True,
            )
        ],
        check_specs=check_specs(CHECKS, partitions),
        backfill_policy=BACKFILL_POLICY,
        pool=POOL,
        can_subset=True,  # a dry run yields neither the asset nor its checks, "Execute all" only the checks
    )
    @safe_errors
    def verify(
        context: dg.AssetExecutionContext, config: VerifyConfig, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[StepEvent]:
        # Imported here because an HTTP client takes half a second to import.
        from kyc_pipeline.verify.engine import verify_partition

        settings = config.apply(pipeline.settings)
        lake, run = pipeline.lake, controls or CallControls()
        with pipeline.open_ledger() as ledger, stopped_with_backfill(context, run.stop):
            if not context.selected_asset_keys:
                days = days_to_check(context, lake)
                results = ((day, check) for day in days for check in check_stores(lake, ledger, day))
                yield from check_events(context.instance, selected_checks(context), results)
                return
            plans = plan_partitions(lake, ledger, list(context.partition_keys), settings)
            log_plan(context, plans, settings, DayBudget(settings.deepxl_max_calls_per_day).read(ledger))
            if config.dry_run:
                return
            budget = run.budget or CallBudget(settings.deepxl_max_calls_per_run)

            def work(day: str) -> DayResult:
                take_over(ledger, day, context.run.run_id, context.run.parent_run_id)
                with logging_termination(context, lake, ledger, day):
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
                if summary.fault is not None:
                    # Any further call would fail too: the other days record their outcomes without one.
                    budget.exhaust()
                context.log.info(f"{day}: {summary}")
                reconciliation = reconcile(lake, ledger, day)
                table = VERIFICATION_RESPONSES
                metadata = {
                    **partition_metadata(lake, table, day, summary.submissions),
                    **day_metadata(summary, read_spend(ledger, day), reconciliation.latencies, settings),
                }
                return DayResult(
                    metadata={table.name: metadata},
                    checks=check_partition(reconciliation, summary),
                )

            yield from work_through(context, work)

    return verify
