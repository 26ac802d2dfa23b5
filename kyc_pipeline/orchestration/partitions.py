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
from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.state import turns
from kyc_pipeline.orchestration.checks import check_evaluation, check_result
from kyc_pipeline.orchestration.safe_errors import safe_message
from kyc_pipeline.orchestration.up_to_date import UP_TO_DATE, up_to_date

BACKFILL_DAYS_PER_RUN = 10
"""Days per run of a backfill; see docs/decisions/0005-runs-take-a-few-days.md."""
BACKFILL_POLICY = dg.BackfillPolicy.multi_run(max_partitions_per_run=BACKFILL_DAYS_PER_RUN)

Metadata = Mapping[str, Any]


def daily_partitions(start: date) -> dg.DailyPartitionsDefinition:
    """One partition per day (UTC) from `start` to today, which may run before the day is over."""
    return dg.DailyPartitionsDefinition(start_date=start.isoformat(), timezone="UTC", end_offset=1)


def batches(days: Sequence[str]) -> list[Sequence[str]]:
    """The days of each run of a backfill, in order."""
    return [
        days[start : start + BACKFILL_DAYS_PER_RUN] for start in range(0, len(days), BACKFILL_DAYS_PER_RUN)
    ]


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
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """Calls `work` for each day of the run, then once more for days that have become outdated.

    Yields the step's results. A :class:`KycError` fails its day only; any other error also skips the
    remaining days. If a day failed, so does the step, with one line per failed day.
    """
    days = list(context.partition_keys)
    done: dict[str, DayResult] = {}
    failures: list[str] = []
    complete = False
    try:
        for day in turns(days, lambda day: day in done and is_outdated(day)):
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
            _log_checks(context, day, result, ranged=len(days) > 1)
        complete = not failures
    finally:
        if not complete:
            _report_finished(context, done)
    if failures:
        raise dg.Failure(
            description="; ".join(failures[:20]),
            metadata={"failed_partitions": len(failures), "finished_partitions": len(done)},
            allow_retries=False,
        )
    yield from _step_results(context, done)


def _log_checks(context: dg.AssetExecutionContext, day: str, result: DayResult, *, ranged: bool) -> None:
    for check in result.checks:
        if not check.passed:
            context.log.warning(f"{day}: check {check.name}: {check.description}")
        if ranged:
            context.log_event(check_evaluation(check, day))


def _report_finished(context: dg.AssetExecutionContext, done: Mapping[str, DayResult]) -> None:
    for day, result in done.items():
        for asset, metadata in result.metadata.items():
            context.log_event(
                dg.AssetMaterialization(asset_key=dg.AssetKey(asset), partition=day, metadata=metadata)
            )


def _step_results(
    context: dg.AssetExecutionContext, done: Mapping[str, DayResult]
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    for day, result in done.items():
        for asset, metadata in result.metadata.items():
            context.add_asset_metadata(metadata, asset_key=dg.AssetKey(asset), partition_key=day)
    for key in context.selected_asset_keys:
        yield dg.MaterializeResult(asset_key=key)
    yield from _worst_checks(context, done)


def _worst_checks(
    context: dg.AssetExecutionContext, done: Mapping[str, DayResult]
) -> Iterator[dg.AssetCheckResult]:
    """One result per check: that of the last day that failed it, or of the last day if none did."""
    worst: dict[tuple[str, str], tuple[str, CheckResult]] = {}
    for day, result in done.items():
        for check in result.checks:
            key = (check.definition.asset, check.name)
            if not check.passed or key not in worst or worst[key][1].passed:
                worst[key] = (day, check)
    selected = {(key.asset_key.to_user_string(), key.name) for key in context.selected_asset_check_keys}
    for key, (day, check) in worst.items():
        if key in selected:
            yield check_result(check, date=day)
