"""The daily partitions, and how a step works through the days of its run.

If a run over several days fails, Dagster marks all of them as failed. So a step reports the materializations
of the days that it finished before it fails: they stay green, and a later backfill skips them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import dagster as dg

from kyc_pipeline.checks import CheckResult
from kyc_pipeline.errors import KycError, in_one_line
from kyc_pipeline.ingest.state import ingest_order
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.orchestration.checks import check_evaluation, check_events, latest_materialization
from kyc_pipeline.orchestration.publication import UP_TO_DATE, up_to_date
from kyc_pipeline.orchestration.safe_errors import safe_message

BACKFILL_DAYS_PER_RUN = 10
"""Days per run of a backfill; see docs/decisions/0005-runs-take-a-few-days.md."""
BACKFILL_POLICY = dg.BackfillPolicy.multi_run(max_partitions_per_run=BACKFILL_DAYS_PER_RUN)

FAILURES = "failures"
"""Metadata of a failed step: one line per failed day."""

Metadata = Mapping[str, Any]
StepEvent = dg.MaterializeResult[Any] | dg.AssetCheckEvaluation | dg.Output[None]
"""What a step over days yields."""


def daily_partitions(start: date) -> dg.DailyPartitionsDefinition:
    """One partition per day (UTC) from `start` to today, which may run before the day is over."""
    return dg.DailyPartitionsDefinition(start_date=start.isoformat(), timezone="UTC", end_offset=1)


def batches(days: Sequence[str]) -> list[Sequence[str]]:
    """The days of each run of a backfill, in order."""
    return [
        days[start : start + BACKFILL_DAYS_PER_RUN] for start in range(0, len(days), BACKFILL_DAYS_PER_RUN)
    ]


def days_to_check(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, lake: Lake
) -> Sequence[str]:
    """The days of a run that checks responses: all days with responses if it has no partition.

    "Execute all" in the UI starts such a run, because the UI cannot choose a partition for a check.
    """
    if context.has_partition_key or context.has_partition_key_range:
        days: Sequence[str] = context.partition_keys
        return days
    return lake.dates(VERIFICATION_RESPONSES)


def selected_checks(context: dg.AssetExecutionContext) -> list[dg.AssetCheckSpec]:
    """The checks of this step that the run has selected."""
    return [spec for spec in context.assets_def.check_specs if spec.key in context.selected_asset_check_keys]


@dataclass(frozen=True)
class DayResult:
    """The result of one day: metadata by asset name, and checks."""

    metadata: Mapping[str, Metadata]
    checks: Sequence[CheckResult] = ()
    up_to_date: bool = False
    """Whether nothing had changed since the day's last run, so that nothing was written."""


def work_through(
    context: dg.AssetExecutionContext,
    work: Callable[[str], DayResult],
    is_outdated: Callable[[str], bool] = lambda day: False,
) -> Iterator[StepEvent]:
    """Calls `work` for each day of the run, then once more for days that have become outdated.

    Yields the step's results. A :class:`KycError` fails its day only; any other error also skips the
    remaining days. If a day failed, so does the step, with one line per failed day.

    A step always writes all its tables. If the run has selected only some of them, it reports the others too.
    """
    _require_assets(context)
    days = list(context.partition_keys)
    done: dict[str, DayResult] = {}
    failures: list[str] = []
    complete = False
    try:
        for day in ingest_order(days, lambda day: day in done and is_outdated(day)):
            try:
                done[day] = result = work(day)
            except KycError as error:
                done.pop(day, None)
                failures.append(f"{day}: {error}")
                continue
            # Unexpected error: skip the remaining days.
            except Exception as error:
                done.pop(day, None)
                failures.append(f"{day}: {safe_message(error)}")
                break
            if result.up_to_date:
                context.log.info(f"{day}: {UP_TO_DATE}")
                for asset in result.metadata:
                    context.log_event(up_to_date(dg.AssetKey(asset), partition=day))
            for check in result.checks:
                if not check.passed:
                    context.log.warning(f"check {check.name}: {check.description}")
        complete = not failures
    finally:
        if not complete:
            _report(context, done)
    if failures:
        raise dg.Failure(
            description=in_one_line(failures),
            metadata={
                FAILURES: dg.MetadataValue.json(failures),
                "failed_partitions": len(failures),
                "finished_partitions": len(done),
            },
            allow_retries=False,
        )
    yield from _step_results(context, done)


def _require_assets(context: dg.AssetExecutionContext) -> None:
    """Raises `dg.Failure` if the run has selected only checks, which need the step's work."""
    if not context.selected_asset_keys:
        keys = {key.asset_key.to_user_string() for key in context.selected_asset_check_keys}
        tables = ", ".join(sorted(keys))
        raise dg.Failure(
            f"the checks of the step {context.op_def.name} cannot run on their own: materialize {tables}",
            allow_retries=False,
        )


def _report(
    context: dg.AssetExecutionContext,
    done: Mapping[str, DayResult],
    assets: Callable[[dg.AssetKey], bool] = lambda key: True,
    checks: Callable[[dg.AssetCheckKey], bool] = lambda key: True,
) -> None:
    """Reports results that the step does not yield."""
    for day, result in done.items():
        for asset, metadata in result.metadata.items():
            if assets(key := dg.AssetKey(asset)):
                context.log_event(dg.AssetMaterialization(asset_key=key, partition=day, metadata=metadata))
        for check in result.checks:
            if checks(dg.AssetCheckKey(dg.AssetKey(check.definition.asset), check.name)):
                made = latest_materialization(context.instance, check.definition.asset, day)
                context.log_event(check_evaluation(check, day, made))


def _step_results(context: dg.AssetExecutionContext, done: Mapping[str, DayResult]) -> Iterator[StepEvent]:
    assets, checks = context.selected_asset_keys, context.selected_asset_check_keys
    _report(context, done, lambda key: key not in assets, lambda key: key not in checks)
    for day, result in done.items():
        for asset, metadata in result.metadata.items():
            if (key := dg.AssetKey(asset)) in assets:
                context.add_asset_metadata(metadata, asset_key=key, partition_key=day)
    for key in assets:
        yield dg.MaterializeResult(asset_key=key)
    results = ((day, check) for day, result in done.items() for check in result.checks)
    yield from check_events(context.instance, selected_checks(context), results)
