"""The daily partitions, and how a step works through those of its run.

A run may cover a range of days. Dagster marks every day of a failed range run as failed; here the days that
were finished are reported before the step fails, so that they stay green and a later backfill leaves them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import dagster as dg

from kyc_pipeline.checks import CheckResult
from kyc_pipeline.errors import KycError
from kyc_pipeline.orchestration.checks import check_evaluation, check_result
from kyc_pipeline.orchestration.failures import told

BACKFILL_DAYS_PER_RUN = 10
"""Days in one run of a backfill: a run costs seconds, and what a run pays for is seen when it ends."""
BACKFILL_POLICY = dg.BackfillPolicy.multi_run(max_partitions_per_run=BACKFILL_DAYS_PER_RUN)

Metadata = Mapping[str, Any]


def daily_partitions(start: date) -> dg.DailyPartitionsDefinition:
    """One partition a day (UTC) from `start` to today; today's may be run while it is still filling."""
    return dg.DailyPartitionsDefinition(start_date=start.isoformat(), timezone="UTC", end_offset=1)


@dataclass(frozen=True)
class DayResult:
    """What one day's work made: metadata for each asset (by name), and its checks."""

    metadata: Mapping[str, Metadata]
    checks: Sequence[CheckResult] = ()


def work_through(
    context: dg.AssetExecutionContext,
    work: Callable[[str], DayResult | None],
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """Does `work` for each day of the run and yields the step's results.

    A day that ends in a :class:`KycError` does not stop the others, any other error does; the step then fails
    with one line for each such day. `work` returns None where nothing is to be materialized (a dry run).
    """
    days = list(context.partition_keys)
    done: dict[str, DayResult] = {}
    skipped = False
    failures: list[str] = []
    complete = False
    try:
        for day in days:
            try:
                result = work(day)
            except KycError as error:
                failures.append(f"{day}: {error}")
                continue
            # Nobody foresaw it, so the other days are not begun.
            except Exception as error:
                failures.append(f"{day}: {told(error)}")
                break
            if result is None:
                skipped = True
            else:
                done[day] = result
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
    if not skipped:
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
    """One result for each check of the step: the last day's, or the last that did not pass."""
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
