"""The schedules: yesterday's partition, missed days and retention every day; a clean-up every week."""

from collections.abc import Iterator
from datetime import UTC, timedelta

import dagster as dg

from kyc_pipeline.erasure.retention import NO_PERIOD, RetentionPeriods
from kyc_pipeline.orchestration.catch_up import contiguous_ranges, due_days, unreadable_key
from kyc_pipeline.orchestration.jobs import CATCH_UP, NEW_DATA, TRIGGER, VERIFY_AND_PUBLISH, range_tags
from kyc_pipeline.orchestration.maintenance import maintenance
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.retention import retention
from kyc_pipeline.orchestration.safe_errors import safe_errors


@dg.schedule(
    job_name=VERIFY_AND_PUBLISH,
    cron_schedule="15 1 * * *",
    execution_timezone="UTC",
    description="Verifies and publishes yesterday's submissions.",
)
@safe_errors
def daily_verification(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Requests yesterday's partition at 01:15 UTC, which leaves an hour for late manifests."""
    day = (context.scheduled_execution_time.astimezone(UTC).date() - timedelta(days=1)).isoformat()
    return dg.RunRequest(run_key=day, partition_key=day, tags={**NEW_DATA, TRIGGER: "daily_verification"})


@dg.schedule(
    job_name=VERIFY_AND_PUBLISH,
    cron_schedule="45 3 * * *",
    execution_timezone="UTC",
    description="Runs the days of KYC_CATCH_UP_DAYS that are missing, incomplete or changed.",
)
@safe_errors
def catch_up(
    context: dg.ScheduleEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Requests, at 03:45 UTC, a run per range of days that need one.

    A day with unreadable manifests gets a run of its own, which fails with the reason. Its run key changes
    only when the files change, so Dagster starts it once.
    """
    today = context.scheduled_execution_time.astimezone(UTC).date()
    due = due_days(pipeline, until=today - timedelta(days=1))
    tags = {**CATCH_UP, TRIGGER: "catch_up"}
    if not due.days and not due.unreadable:
        yield dg.SkipReason("every partition of the window is complete and up to date")
    for first, last in contiguous_ranges(due.days):
        yield dg.RunRequest(run_key=f"{today}:{first}:{last}", tags={**range_tags(first, last), **tags})
    for day, reason in due.unreadable.items():
        context.log.warning(f"{day}: {reason}")
        yield dg.RunRequest(run_key=unreadable_key(pipeline.settings, day), partition_key=day, tags=tags)


@dg.schedule(
    job=retention,
    cron_schedule="0 6 * * *",
    execution_timezone="UTC",
    description="Reports, and with KYC_RETENTION_APPLY removes, data whose retention period is over.",
)
@safe_errors
def daily_retention(pipeline: dg.ResourceParam[Pipeline]) -> dg.RunRequest | dg.SkipReason:
    """Requests the job at 06:00 UTC, after the night's runs, if there is a retention period."""
    if RetentionPeriods.of(pipeline.settings).is_empty:
        return dg.SkipReason(NO_PERIOD)
    return dg.RunRequest()


weekly_maintenance = dg.ScheduleDefinition(
    name="weekly_maintenance",
    job=maintenance,
    cron_schedule="30 5 * * 0",
    execution_timezone="UTC",
    description="Cleans up: old runs, free pages of the ledger, unfinished files.",
)
"""Sundays at 05:30 UTC, after the night's runs."""
