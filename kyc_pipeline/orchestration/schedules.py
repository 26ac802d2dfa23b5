"""Schedules: yesterday every night, and what was missed."""

from collections.abc import Iterator
from datetime import UTC, timedelta

import dagster as dg

from kyc_pipeline.orchestration.catch_up import contiguous_ranges, due_days, unreadable_key
from kyc_pipeline.orchestration.failures import fails_plainly
from kyc_pipeline.orchestration.jobs import CATCH_UP, TODAY, VERIFY_AND_PUBLISH, range_tags
from kyc_pipeline.orchestration.resources import Pipeline


@dg.schedule(
    job_name=VERIFY_AND_PUBLISH,
    cron_schedule="15 1 * * *",
    execution_timezone="UTC",
    description="Verifies and publishes yesterday's submissions.",
)
@fails_plainly
def daily_verification(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Yesterday's partition, at 01:15 UTC: the day is over and late manifests have had an hour."""
    day = (context.scheduled_execution_time.astimezone(UTC).date() - timedelta(days=1)).isoformat()
    return dg.RunRequest(run_key=day, partition_key=day, tags={**TODAY, "kyc/trigger": "daily_verification"})


@dg.schedule(
    job_name=VERIFY_AND_PUBLISH,
    cron_schedule="45 3 * * *",
    execution_timezone="UTC",
    description="Runs what is missing, incomplete or changed within KYC_CATCH_UP_DAYS.",
)
@fails_plainly
def catch_up(
    context: dg.ScheduleEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """What was missed, at 03:45 UTC: a run for each range of days, and one for each day that is unreadable.

    The run of an unreadable day fails and says why. It is asked for once as long as its files stay the same.
    """
    today = context.scheduled_execution_time.astimezone(UTC).date()
    due = due_days(pipeline, until=today - timedelta(days=1))
    tags = {**CATCH_UP, "kyc/trigger": "catch_up"}
    if not due.days and not due.unreadable:
        yield dg.SkipReason("every partition of the window is complete and current")
    for first, last in contiguous_ranges(due.days):
        yield dg.RunRequest(run_key=f"{today}:{first}:{last}", tags={**range_tags(first, last), **tags})
    for day, why in due.unreadable.items():
        context.log.warning(f"{day}: {why}")
        yield dg.RunRequest(run_key=unreadable_key(pipeline.settings, day), partition_key=day, tags=tags)
