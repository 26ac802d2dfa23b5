"""Which partitions need a run.

A partition needs one if

- it is missing, its manifests or a setting about them changed, or another day gave up an id that it wants,
- a killed run left it unfinished,
- it has submissions that failed, were not attempted, or that an operator decided to send again,
- it has rows whose files were missing,
- it has submissions that DeepXL turned away, whose rows were then withdrawn, and that nobody has looked up.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import dagster as dg
import pyarrow.compute as pc

from kyc_pipeline.errors import KycError
from kyc_pipeline.flatten.partition import source_of
from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.ingest.manifests import (
    awaits_files,
    is_ingested,
    manifest_dates,
    manifest_identity,
    manifest_signature,
    require_mounted,
)
from kyc_pipeline.lake.tables import (
    STATE_KEY,
    SUBMISSIONS,
    VERIFICATION_RESPONSES,
    VERIFICATIONS,
    ResponsesState,
)
from kyc_pipeline.landing.opening import open_landing
from kyc_pipeline.landing.zone import Landing
from kyc_pipeline.ledger.decisions import dates_to_send_again
from kyc_pipeline.ledger.queries import dates_turned_away
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.partition import withdrawn
from kyc_pipeline.vocabulary import LEFT_FOR_LATER

_ID = ["submission_id"]
_LEFT = frozenset(outcome.value for outcome in LEFT_FOR_LATER)


@dataclass(frozen=True)
class Due:
    """The days that need a run, in order."""

    days: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Days with unreadable manifests, and the reason. Each gets its own run, which fails with the reason."""


def due_days(pipeline: Pipeline, *, until: date) -> Due:
    """The days up to `until` that need a run.

    A day with an operator's decision, or with a withdrawn submission to look up, is due whatever its age, and
    even if its manifests were archived. Other days are due only if they have manifests and are within
    `KYC_CATCH_UP_DAYS`.

    Raises :class:`UsageError` if the landing zone is missing, or empty though the lake was made from it.
    """
    settings, lake = pipeline.settings, pipeline.lake
    landing = open_landing(settings.kyc_landing).snapshot()
    require_mounted(landing, lake)
    first = max(settings.kyc_start_date, until - timedelta(days=settings.kyc_catch_up_days - 1))
    with pipeline.open_ledger() as ledger:
        to_look_up = {day for day in dates_turned_away(ledger) if withdrawn(lake, ledger, day)}
        decided = set(dates_to_send_again(ledger, "hold")) | to_look_up
        again = set(dates_to_send_again(ledger, settings.deepxl_uncertain)) | to_look_up
    within = {day for day in manifest_dates(landing) if first.isoformat() <= day <= until.isoformat()}
    decided = {day for day in decided if settings.kyc_start_date.isoformat() <= day <= until.isoformat()}
    due = Due()
    for day in sorted(within | decided):
        try:
            manifest_identity(landing, day)
        except KycError as error:
            due.unreadable[day] = str(error)
            continue
        if day in again or _needs_run(pipeline, landing, day) or awaits_files(lake, day):
            due.days.append(day)
    return due


def unreadable_key(settings: Settings, day: str) -> str:
    """The run key for a day with unreadable manifests; it changes when the files change."""
    try:
        return f"{day}:unreadable:{manifest_signature(settings.kyc_landing, day)}"
    except KycError:
        return f"{day}:unreadable"


def days_left_behind(
    pipeline: Pipeline, instance: dg.DagsterInstance, run_id: str
) -> Iterator[tuple[str, str]]:
    """Ranges (first, last) of days that a failed run ingested and that still need a run.

    Dagster skips all downstream steps even if ingest failed for one day of ten. A run whose ingest failed has
    ingested fewer days than it was given, so the follow-up runs shrink and come to an end.
    """
    landing = open_landing(pipeline.settings.kyc_landing)
    days = ingested_by(instance, run_id)
    return contiguous_ranges([day for day in days if _needs_run(pipeline, landing, day)])


def ingested_by(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """The days that the run ingested, in order."""
    key = dg.AssetKey(SUBMISSIONS.name)
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    events = (entry.dagster_event for entry in entries)
    return sorted(
        {event.partition for event in events if event and event.asset_key == key and event.partition}
    )


def _needs_run(pipeline: Pipeline, landing: Landing, day: str) -> bool:
    """Whether a table of the day is missing, unreadable or outdated, or submissions are unfinished."""
    lake = pipeline.lake
    if not is_ingested(landing, lake, day, options=LandingOptions.of(pipeline.settings)):
        return True
    try:
        responses = lake.read(VERIFICATION_RESPONSES, day, ["submission_id", "outcome"])
        state = lake.metadata(VERIFICATION_RESPONSES, day).get(STATE_KEY)
        return (
            # A run was killed while it made calls, or is still making them.
            state != ResponsesState.COMPLETE
            or not _LEFT.isdisjoint(pc.unique(responses["outcome"]).to_pylist())
            or not responses["submission_id"].equals(lake.read(SUBMISSIONS, day, _ID)["submission_id"])
            or lake.metadata(VERIFICATIONS, day).get("source") != source_of(lake, day)
        )
    except KycError:
        return True


def contiguous_ranges(days: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`days` (ISO dates in order) as ranges (first, last) without gaps."""
    ordinals = [date.fromisoformat(day).toordinal() for day in days]
    # Within a range without gaps, the difference of ordinal and position is constant.
    for _, group in itertools.groupby(range(len(days)), key=lambda position: ordinals[position] - position):
        positions = list(group)
        yield days[positions[0]], days[positions[-1]]
