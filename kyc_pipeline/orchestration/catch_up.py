"""Which partitions a scheduler has to run.

Missing or with manifests that changed; left by a run that was killed between its steps or in one; incomplete
(failed, not attempted); with submissions that an operator set to be sent again; with rows whose files had not
arrived.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pyarrow.compute as pc

from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.flatten.partition import source_of
from kyc_pipeline.ingest.manifests import (
    awaits_files,
    is_ingested,
    manifest_dates,
    manifest_identity,
    manifest_signature,
)
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import (
    STATE_KEY,
    SUBMISSIONS,
    VERIFICATION_RESPONSES,
    VERIFICATIONS,
    ResponsesState,
)
from kyc_pipeline.ledger.decisions import dates_to_send_again
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.vocabulary import Outcome

_ID = ["submission_id"]
INCOMPLETE = frozenset({Outcome.FAILED.value, Outcome.NOT_ATTEMPTED.value})


@dataclass(frozen=True)
class Due:
    """The days that need a run, in order."""

    days: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Days whose manifests cannot be looked at, and why: each fails in a run of its own, where it is seen."""


def require_mounted(settings: Settings) -> None:
    """Raises :class:`UsageError` without a landing zone: that must not look like one without news."""
    if not settings.kyc_landing.is_dir():
        raise UsageError(f"KYC_LANDING: {settings.kyc_landing} is not a folder: is the volume mounted?")


def due_days(pipeline: Pipeline, *, until: date) -> Due:
    """The days with manifests, within `KYC_CATCH_UP_DAYS` before and with `until`, that need a run.

    Raises :class:`UsageError` where the landing zone is not there.
    """
    settings, lake = pipeline.settings, pipeline.lake
    require_mounted(settings)
    first = max(settings.kyc_start_date, until - timedelta(days=settings.kyc_catch_up_days - 1))
    with pipeline.open_ledger() as ledger:
        again = set(dates_to_send_again(ledger, settings.deepxl_uncertain))
    due = Due()
    for day in manifest_dates(settings.kyc_landing):
        if not first.isoformat() <= day <= until.isoformat():
            continue
        try:
            manifest_identity(settings.kyc_landing, day)
        except KycError as error:
            due.unreadable[day] = str(error)
            continue
        if day in again or _needs_run(settings.kyc_landing, lake, day) or awaits_files(lake, day):
            due.days.append(day)
    return due


def unreadable_key(settings: Settings, day: str) -> str:
    """The key of the run for the unreadable files of `day`: another one as soon as the files change."""
    try:
        return f"{day}:unreadable:{manifest_signature(settings.kyc_landing, day)}"
    except KycError:
        return f"{day}:unreadable"


def left_behind(lake: Lake, ingested: Sequence[str], landing: Path) -> Iterator[tuple[str, str]]:
    """Ranges (first, last) of the days that a failed ingest of other days kept from their own work.

    Dagster runs no step after one that failed, though it failed for one day of ten. `ingested` are the days
    that the failed step finished: fewer than it was to do, so that runs which follow each other come to an
    end whatever the failure is.
    """
    yield from contiguous_ranges([day for day in ingested if _needs_run(landing, lake, day)])


def ingested_by(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """The days that a run finished the ingest of, in order."""
    key = dg.AssetKey(SUBMISSIONS.name)
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    events = (entry.dagster_event for entry in entries)
    return sorted(
        {event.partition for event in events if event and event.asset_key == key and event.partition}
    )


def _needs_run(landing: Path, lake: Lake, day: str) -> bool:
    """Whether a table of the day is missing, broken or not made from the one before it, or has open rows."""
    if not is_ingested(landing, lake, day):
        return True
    try:
        answers = lake.read(VERIFICATION_RESPONSES, day, ["submission_id", "outcome"])
        state = lake.metadata(VERIFICATION_RESPONSES, day).get(STATE_KEY)
        return (
            # A run was killed while it made calls; or it is making them, and the one to come waits for it.
            state != ResponsesState.COMPLETE
            or not INCOMPLETE.isdisjoint(pc.unique(answers["outcome"]).to_pylist())
            or not answers["submission_id"].equals(lake.read(SUBMISSIONS, day, _ID)["submission_id"])
            or lake.metadata(VERIFICATIONS, day).get("source") != source_of(lake, day)
        )
    except KycError:
        return True


def contiguous_ranges(days: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`days` (ISO dates in order) as ranges (first, last) without gaps."""
    first = previous = None
    for day in days:
        if previous is not None and date.fromisoformat(day) - date.fromisoformat(previous) > timedelta(
            days=1
        ):
            assert first is not None
            yield first, previous
            first = None
        first, previous = first or day, day
    if first is not None and previous is not None:
        yield first, previous
