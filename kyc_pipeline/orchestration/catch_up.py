"""Which partitions need a run.

A partition needs one if

- it is missing, its manifests or a setting about them changed, or another day gave up an id that it wants,
- a killed run left it unfinished,
- it has submissions that failed, were not attempted, or that an operator decided to send again,
- it has rows whose files were missing,
- it has submissions that DeepXL turned away, whose rows were then withdrawn, and that nobody has looked up.

The lake's tables are listed once. What a partition says is remembered as long as it is not replaced, so that
an object store is not asked again and again.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Self

import dagster as dg
import pyarrow.compute as pc

from kyc_pipeline.errors import KycError
from kyc_pipeline.flatten.partition import is_flattened
from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.ingest.manifests import (
    manifest_dates,
    manifest_identity,
    manifest_signature,
    rejection_reasons,
    require_mounted,
)
from kyc_pipeline.ingest.state import Records
from kyc_pipeline.lake.storage import Lake, Partition
from kyc_pipeline.lake.tables import (
    REJECTED_SUBMISSIONS,
    STATE_KEY,
    SUBMISSIONS,
    VERIFICATION_RESPONSES,
    VERIFICATIONS,
    ResponsesState,
    Table,
)
from kyc_pipeline.landing.opening import open_landing
from kyc_pipeline.landing.zone import Landing
from kyc_pipeline.ledger.decisions import dates_to_send_again
from kyc_pipeline.ledger.queries import dates_turned_away
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.partition import withdrawn
from kyc_pipeline.vocabulary import LEFT_FOR_LATER, Reason

_ID = ["submission_id"]
_LEFT = frozenset(outcome.value for outcome in LEFT_FOR_LATER)
_FINISHED = (SUBMISSIONS, VERIFICATION_RESPONSES, VERIFICATIONS)
_JUDGED = (*_FINISHED, REJECTED_SUBMISSIONS)
_REMEMBERED = 1 << 14
"""Days."""


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
    listed = _Listed.of(pipeline)
    for day in sorted(within | decided):
        try:
            manifest_identity(landing, day)
        except KycError as error:
            due.unreadable[day] = str(error)
            continue
        if day in again or listed.needs_run(landing, day) or listed.awaits_files(day):
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
    listed = _Listed.of(pipeline)
    days = ingested_by(instance, run_id)
    return contiguous_ranges([day for day in days if listed.needs_run(landing, day)])


def ingested_by(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """The days that the run ingested, in order."""
    key = dg.AssetKey(SUBMISSIONS.name)
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    events = (entry.dagster_event for entry in entries)
    return sorted(
        {event.partition for event in events if event and event.asset_key == key and event.partition}
    )


@dataclass(frozen=True)
class _Listed:
    """The lake's partitions as listed at one time."""

    lake: Lake
    partitions: Mapping[Table, Mapping[str, Partition]]
    records: Records

    @classmethod
    def of(cls, pipeline: Pipeline) -> Self:
        lake = pipeline.lake
        partitions = {table: lake.partitions(table) for table in _JUDGED}
        versions = {day: each.version for day, each in partitions[SUBMISSIONS].items()}
        return cls(lake, partitions, Records(lake, None, versions, LandingOptions.of(pipeline.settings)))

    def needs_run(self, landing: Landing, day: str) -> bool:
        """Whether a table of the day is missing, unreadable or outdated, or submissions are unfinished."""
        try:
            return not (
                all(day in self.partitions[table] for table in _FINISHED)
                and self.records.is_current(day, manifest_identity(landing, day))
                and _is_finished(self.lake, day, self._versions(day))
            )
        except KycError:
            return True

    def awaits_files(self, day: str) -> bool:
        """Whether the day has a row that was rejected for a missing document, or rows that are unreadable."""
        if day not in self.partitions[REJECTED_SUBMISSIONS]:
            return False
        try:
            return Reason.FILE_NOT_FOUND in _reasons(self.lake, day, self._versions(day))
        except KycError:
            return True

    def _versions(self, day: str) -> tuple[tuple[str, ...] | None, ...]:
        found = (partitions.get(day) for partitions in self.partitions.values())
        return tuple(each.version if each else None for each in found)


@functools.lru_cache(maxsize=_REMEMBERED)
def _is_finished(lake: Lake, day: str, _versions: object) -> bool:
    """Whether each accepted submission has an outcome for good, in tables that were made from each other."""
    responses = lake.read(VERIFICATION_RESPONSES, day, ["submission_id", "outcome"])
    return (
        # Else a run was killed while it made calls, or is still making them.
        lake.metadata(VERIFICATION_RESPONSES, day).get(STATE_KEY) == ResponsesState.COMPLETE
        and _LEFT.isdisjoint(pc.unique(responses["outcome"]).to_pylist())
        and responses["submission_id"].equals(lake.read(SUBMISSIONS, day, _ID)["submission_id"])
        and is_flattened(lake, day)
    )


@functools.lru_cache(maxsize=_REMEMBERED)
def _reasons(lake: Lake, day: str, _versions: object) -> frozenset[str]:
    return rejection_reasons(lake, day)


def contiguous_ranges(days: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`days` (ISO dates in order) as ranges (first, last) without gaps."""
    ordinals = [date.fromisoformat(day).toordinal() for day in days]
    # Within a range without gaps, the difference of ordinal and position is constant.
    for _, group in itertools.groupby(range(len(days)), key=lambda position: ordinals[position] - position):
        positions = list(group)
        yield days[positions[0]], days[positions[-1]]
