"""The sensors: new and changed manifests, and the days that a bad one held up."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.ingest.formats import printable
from kyc_pipeline.ingest.manifests import (
    manifest_dates,
    manifest_identity,
    manifest_signature,
    stray_folders,
)
from kyc_pipeline.orchestration.catch_up import ingested_by, left_behind, require_mounted, unreadable_key
from kyc_pipeline.orchestration.failures import fails_plainly
from kyc_pipeline.orchestration.jobs import (
    TODAY,
    VERIFY_AND_PUBLISH,
    range_days,
    range_tags,
    verify_and_publish,
)
from kyc_pipeline.orchestration.resources import Pipeline

INGEST_STEP = "ingest"
"""The step that fails where a manifest cannot be read."""
DIGITS = 16
"""Of a SHA-256 in the cursor: enough to see a change."""
STRAY = "folders below manifests/ that are not named YYYY-MM-DD are not read"
TICK_BUDGET_SECONDS = 30.0
"""Dagster ends a tick at 60 s; what is left is done by the next tick."""


@dg.sensor(
    job_name=VERIFY_AND_PUBLISH,
    minimum_interval_seconds=15,
    description="Starts a run for each day with new or changed manifests in the landing zone.",
)
@fails_plainly
def new_manifests(
    context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """A run for each day whose manifests' content is new.

    The run key holds the content's identity, so a redelivered, identical manifest starts nothing and a
    changed one does. A day is taken when its files look the same at two ticks: a manifest that is still
    being written waits. The cursor maps a day to [start of the files' signature, start of the content's
    identity]; Dagster keeps it with every tick, so it is short, and has only days that are there.

    A day whose files cannot be read gets a run too, one as long as they stay the same: it fails and says why.
    It is looked at again at each tick, and does not hold up the others.
    """
    settings = pipeline.settings
    try:
        require_mounted(settings)
    except UsageError as error:
        yield dg.SkipReason(str(error))  # the cursor stays as it is
        return
    seen: dict[str, list[str]] = json.loads(context.cursor or "{}")
    cursor: dict[str, list[str]] = {}
    started = time.monotonic()
    requested = 0
    tags = {**TODAY, "kyc/trigger": "new_manifests"}
    first, last = settings.kyc_start_date.isoformat(), datetime.now(UTC).date().isoformat()
    for day in manifest_dates(settings.kyc_landing):
        # A request for a day that is no partition yet would end the tick for all days.
        if not first <= day <= last:
            continue
        before, known = seen.get(day, ["", ""])
        if time.monotonic() - started > TICK_BUDGET_SECONDS:
            cursor[day] = [before, known]
            continue
        try:
            signature = manifest_signature(settings.kyc_landing, day)[:DIGITS]
            if signature == before and not known:
                identity = manifest_identity(settings.kyc_landing, day)
                requested += 1
                yield dg.RunRequest(run_key=f"{day}:{identity}", partition_key=day, tags=tags)
                known = identity[:DIGITS]
            cursor[day] = [signature, known if signature == before else ""]
        except KycError as error:
            context.log.warning(f"{day}: {error}")
            requested += 1
            yield dg.RunRequest(run_key=unreadable_key(settings, day), partition_key=day, tags=tags)
    context.update_cursor(json.dumps(cursor))
    stray = stray_folders(settings.kyc_landing)
    if stray:
        context.log.warning(f"{STRAY}: {', '.join(map(printable, stray))}")
    if not requested:
        yield dg.SkipReason(
            "no new or changed manifests that are complete"
            + (f"; {STRAY}: {', '.join(map(printable, stray[:5]))}" if stray else "")
        )


@dg.run_failure_sensor(
    request_job=verify_and_publish,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Runs the good days of a run whose ingest failed for another day.",
)
@fails_plainly
def run_left_behind(
    context: dg.RunFailureSensorContext, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """After a run of several days whose ingest failed for some of them: a run for the others.

    Dagster runs no step after one that failed, so the good days of the run would wait for the bad one. The
    new run has the configuration and the assets of the failed one, which has paid nothing yet.
    """
    run = context.dagster_run
    failed = {event.step_key for event in context.get_step_failure_events()}
    if len(range_days(run.tags)) < 2 or INGEST_STEP not in failed:
        yield dg.SkipReason("no run of several days whose ingest failed")
        return
    ingested = ingested_by(context.instance, run.run_id)
    for first, last in left_behind(pipeline.lake, ingested, pipeline.settings.kyc_landing):
        yield dg.RunRequest(
            run_key=f"{run.run_id}:{first}:{last}",
            run_config=run.run_config,
            asset_selection=sorted(run.asset_selection) if run.asset_selection else None,
            tags={**range_tags(first, last), "kyc/trigger": "run_left_behind"},
        )
