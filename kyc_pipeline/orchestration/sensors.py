"""The sensors: new and changed manifests, and the days that a bad one held up."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from kyc_pipeline.ingest.manifests import manifest_dates, manifest_identity, manifest_signature
from kyc_pipeline.orchestration.catch_up import left_behind
from kyc_pipeline.orchestration.jobs import VERIFY_AND_PUBLISH, range_days, range_tags, verify_and_publish
from kyc_pipeline.orchestration.resources import Pipeline

INGEST_STEP = "ingest"
"""The step that fails where a manifest cannot be read."""
TICK_BUDGET_SECONDS = 30.0
"""Dagster ends a tick at 60 s; what is left is done by the next tick."""


def new_manifests() -> dg.SensorDefinition:
    """A run for each day whose manifests' content is new.

    The run key holds the content's identity, so a redelivered, identical manifest starts nothing and a
    changed one does. A day is taken when its files look the same at two ticks: a manifest that is still
    being written waits. The cursor maps a day to [signature of the files, identity of the content].
    """

    @dg.sensor(
        name="new_manifests",
        job_name=VERIFY_AND_PUBLISH,
        minimum_interval_seconds=15,
        description="Starts a run for each day with new or changed manifests in the landing zone.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        settings = pipeline.settings
        cursor: dict[str, list[str]] = json.loads(context.cursor or "{}")
        started = time.monotonic()
        requested = 0
        first, last = settings.kyc_start_date.isoformat(), datetime.now(UTC).date().isoformat()
        for day in manifest_dates(settings.kyc_landing):
            # A request for a day that is no partition yet would end the tick for all days.
            if not first <= day <= last or time.monotonic() - started > TICK_BUDGET_SECONDS:
                continue
            signature, identity = manifest_signature(settings.kyc_landing, day), ""
            if day in cursor and cursor[day][0] == signature:
                if cursor[day][1]:
                    continue
                identity = manifest_identity(settings.kyc_landing, day)
                requested += 1
                yield dg.RunRequest(run_key=f"{day}:{identity}", partition_key=day)
            cursor[day] = [signature, identity]
        context.update_cursor(json.dumps(cursor))
        if not requested:
            yield dg.SkipReason("no new or changed manifests that are complete")

    return sensor


def run_left_behind() -> dg.SensorDefinition:
    """After a run of several days whose ingest failed for some of them: a run for the others.

    Dagster runs no step after one that failed, so the good days of the run would wait for the bad one. The
    new run has the configuration and the assets of the failed one, which has paid nothing yet.
    """

    @dg.run_failure_sensor(
        name="run_left_behind",
        request_job=verify_and_publish,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Runs the good days of a run whose ingest failed for another day.",
    )
    def sensor(
        context: dg.RunFailureSensorContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        run = context.dagster_run
        days = range_days(run.tags)
        if len(days) < 2 or all(event.step_key != INGEST_STEP for event in context.get_step_failure_events()):
            yield dg.SkipReason("no run of several days whose ingest failed")
            return
        for first, last in left_behind(pipeline.settings, pipeline.lake, days):
            yield dg.RunRequest(
                run_key=f"{run.run_id}:{first}:{last}",
                run_config=run.run_config,
                asset_selection=sorted(run.asset_selection) if run.asset_selection else None,
                tags={**range_tags(first, last), "kyc/trigger": "run_left_behind"},
            )

    return sensor
