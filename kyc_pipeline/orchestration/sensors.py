"""The sensors: for new and changed manifests, for new labels, for days that a failed ingest left behind."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from kyc_pipeline.analyze.build import labels_version
from kyc_pipeline.errors import UsageError
from kyc_pipeline.ingest.labels import are_ingested
from kyc_pipeline.ingest.manifests import (
    labels_signature,
    manifest_dates,
    require_mounted,
    stray_line,
    strays,
)
from kyc_pipeline.landing.opening import open_landing
from kyc_pipeline.orchestration.catch_up import days_left_behind
from kyc_pipeline.orchestration.jobs import (
    COMMAND_LINE,
    NEW_DATA,
    TRIGGER,
    VERIFY_AND_PUBLISH,
    days_of,
    labels_and_publish,
    range_tags,
    verify_and_publish,
)
from kyc_pipeline.orchestration.new_manifests import DIGITS, Tick
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors

INGEST_STEP = "ingest"
"""The step that fails if a manifest cannot be read."""
TICK_BUDGET_SECONDS = 30.0
"""Dagster ends a tick after 60 s; the next tick does the rest."""


@dg.sensor(
    job_name=VERIFY_AND_PUBLISH,
    minimum_interval_seconds=15,
    description="Starts a run for each day with new or changed manifests in the landing zone, once two looks "
    "in a row see the same files. So a test tick shows no request for a file that has just arrived.",
)
@safe_errors
def new_manifests(
    context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Requests a run for each day that is not ingested, until it is; see :mod:`new_manifests`.

    A day needs a run if the lake's record of its manifests differs from the files, even if an old version of
    a manifest came back, or if another day gave up an id that this day has.

    A day with unreadable manifests gets a run too, which fails with the reason. Its run key changes only when
    the files change, so Dagster starts it once. It does not block the other days.
    """
    settings = pipeline.settings
    try:
        require_mounted(settings.kyc_landing, pipeline.lake)
    except UsageError as error:
        yield dg.SkipReason(str(error))  # and keep the cursor
        return
    started = time.monotonic()
    tick = Tick(pipeline, context.instance, context.cursor or "")
    requested = 0
    tags = {**NEW_DATA, TRIGGER: "new_manifests"}
    today = datetime.now(UTC).date()
    first, last = settings.kyc_start_date.isoformat(), today.isoformat()
    for day in manifest_dates(tick.landing):
        # A request for a partition that does not exist would fail the tick for all days.
        if not first <= day <= last:
            continue
        if time.monotonic() - started > TICK_BUDGET_SECONDS:
            tick.skip(day)
        elif key := tick.run_key(day):
            requested += 1
            yield dg.RunRequest(run_key=key, partition_key=day, tags=tags)
    context.update_cursor(tick.new_cursor())
    for day, reason in tick.unreadable.items():
        context.log.warning(f"{day}: {reason}")
    stray = len(strays(tick.landing, settings.kyc_start_date, today))
    if stray:
        context.log.warning(stray_line(stray))
    if not requested:
        yield dg.SkipReason(
            "no new or changed manifests, or they are still being written"
            + (f"; {stray_line(stray)}" if stray else "")
        )


@dg.sensor(
    job=labels_and_publish,
    minimum_interval_seconds=60,
    description="Reads new and changed manifests of labels, once two looks in a row see the same files.",
)
@safe_errors
def new_labels(
    context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.RunRequest | dg.SkipReason:
    """Requests a run if the lake's labels were made from other files. The daily run reads them too."""
    settings = pipeline.settings
    if problem := open_landing(settings.kyc_landing).problem():
        return dg.SkipReason(f"KYC_LANDING: {settings.kyc_landing} {problem}")
    signature = labels_signature(settings.kyc_landing)
    is_known = signature == context.cursor
    context.update_cursor(signature)
    if not is_known or are_ingested(settings.kyc_landing, pipeline.lake, settings.kyc_csv_encoding):
        return dg.SkipReason("no new or changed labels, or they are still being written")
    key = f"{signature[:DIGITS]}:{labels_version(pipeline.lake) or ''}"
    return dg.RunRequest(run_key=key, tags={**NEW_DATA, TRIGGER: "new_labels"})


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
    first_day, last_day = days_of(run.tags) or ("", "")
    if first_day == last_day or INGEST_STEP not in failed or run.tags.get(TRIGGER) == COMMAND_LINE:
        yield dg.SkipReason("not a run over several days whose ingest failed, or one of the command line")
        return
    for first, last in days_left_behind(pipeline, context.instance, run.run_id):
        yield dg.RunRequest(
            run_key=f"{run.run_id}:{first}:{last}",
            run_config=run.run_config,
            asset_selection=sorted(run.asset_selection) if run.asset_selection else None,
            tags={**range_tags(first, last), TRIGGER: "run_left_behind"},
        )
