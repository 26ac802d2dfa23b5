"""Schedules: yesterday every night, and what was missed."""

from collections.abc import Iterator
from datetime import UTC, timedelta

import dagster as dg

from kyc_pipeline.orchestration.catch_up import contiguous_ranges, partitions_to_run
from kyc_pipeline.orchestration.jobs import VERIFY_AND_PUBLISH, range_tags
from kyc_pipeline.orchestration.resources import Pipeline


def daily_verification() -> dg.ScheduleDefinition:
    """Yesterday's partition, at 01:15 UTC: the day is over and late manifests have had an hour."""

    @dg.schedule(
        name="daily_verification",
        job_name=VERIFY_AND_PUBLISH,
        cron_schedule="15 1 * * *",
        execution_timezone="UTC",
        description="Verifies and publishes yesterday's submissions.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        day = (context.scheduled_execution_time.astimezone(UTC).date() - timedelta(days=1)).isoformat()
        return dg.RunRequest(run_key=day, partition_key=day)

    return schedule


def catch_up() -> dg.ScheduleDefinition:
    """Partitions that are missing, incomplete or changed, at 03:45 UTC, a run for each range of days."""

    @dg.schedule(
        name="catch_up",
        job_name=VERIFY_AND_PUBLISH,
        cron_schedule="45 3 * * *",
        execution_timezone="UTC",
        description="Runs what is missing, incomplete or changed within KYC_CATCH_UP_DAYS.",
    )
    def schedule(
        context: dg.ScheduleEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        today = context.scheduled_execution_time.astimezone(UTC).date()
        days = partitions_to_run(pipeline.settings, pipeline.lake, until=today - timedelta(days=1))
        if not days:
            yield dg.SkipReason("every partition of the window is complete and current")
        for first, last in contiguous_ranges(days):
            yield dg.RunRequest(
                run_key=f"{today}:{first}:{last}",
                tags={**range_tags(first, last), "kyc/trigger": "catch_up"},
            )

    return schedule
