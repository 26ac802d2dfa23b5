"""The sensors: one for new and changed manifests, one for days that a failed ingest left behind."""

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
from kyc_pipeline.orchestration.catch_up import days_left_behind, require_mounted, unreadable_key
from kyc_pipeline.orchestration.jobs import (
    RANGE_END,
    RANGE_START,
    TODAY,
    VERIFY_AND_PUBLISH,
    range_tags,
    verify_and_publish,
)
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors

INGEST_STEP = "ingest"
"""The step that fails if a manifest cannot be read."""
DIGITS = 16
"""Hex digits of a SHA-256 in the cursor: enough to detect a change."""
STRAY = "folders below manifests/ that are not named YYYY-MM-DD are not read"
TICK_BUDGET_SECONDS = 30.0
"""Dagster ends a tick after 60 s; the next tick does the rest."""


@dg.sensor(
    job_name=VERIFY_AND_PUBLISH,
    minimum_interval_seconds=15,
    description="Starts a run for each day with new or changed manifests in the landing zone.",
)
@safe_errors
def new_manifests(
    context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Requests a run for each day whose manifests have new content.

    The run key contains a hash of the content, so a change starts a run and an identical redelivery does not.
    A day waits until two consecutive ticks see the same files, so that no manifest is read while it is being
    written. The cursor maps each day to the first digits of [signature of the files, hash of the content]. It
    is short, because Dagster stores it with every tick.

    A day with unreadable manifests gets a run too, which fails with the reason. Its run key changes only when
    the files change, so Dagster starts it once. It does not block the other days.
    """
    settings = pipeline.settings
    try:
        require_mounted(settings)
    except UsageError as error:
        yield dg.SkipReason(str(error))  # and keep the cursor
        return
    seen: dict[str, list[str]] = json.loads(context.cursor or "{}")
    cursor: dict[str, list[str]] = {}
    started = time.monotonic()
    requested = 0
    tags = {**TODAY, "kyc/trigger": "new_manifests"}
    first, last = settings.kyc_start_date.isoformat(), datetime.now(UTC).date().isoformat()
    for day in manifest_dates(settings.kyc_landing):
        # A request for a partition that does not exist would fail the tick for all days.
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
    stray = [printable(name) for name in stray_folders(settings.kyc_landing)]
    if stray:
        context.log.warning(f"{STRAY}: {', '.join(stray)}")
    if not requested:
        yield dg.SkipReason(
            "no new or changed manifests that are complete"
            + (f"; {STRAY}: {', '.join(stray[:5])}" if stray else "")
        )


@dg.run_failure_sensor(
    request_job=verify_and_publish,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Runs the remaining days of a run whose ingest failed for some days.",
)
@safe_errors
def run_left_behind(
    context: dg.RunFailureSensorContext, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """If the ingest of a run over several days failed for some of them, requests runs for the others.

    Dagster skips all downstream steps, so one bad day would block the whole run. The new runs have the run
    config and the assets of the failed one, which has made no call.
    """
    run = context.dagster_run
    failed = {event.step_key for event in context.get_step_failure_events()}
    if run.tags.get(RANGE_START) == run.tags.get(RANGE_END) or INGEST_STEP not in failed:
        yield dg.SkipReason("not a run over several days whose ingest failed")
        return
    for first, last in days_left_behind(pipeline, context.instance, run.run_id):
        yield dg.RunRequest(
            run_key=f"{run.run_id}:{first}:{last}",
            run_config=run.run_config,
            asset_selection=sorted(run.asset_selection) if run.asset_selection else None,
            tags={**range_tags(first, last), "kyc/trigger": "run_left_behind"},
        )
