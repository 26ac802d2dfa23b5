"""Which partitions a scheduler has to run.

Missing or with manifests that changed; incomplete (failed, not attempted); with submissions that an operator
set to be sent again; with rows whose files had not arrived.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import pyarrow.compute as pc

from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.ingest.manifests import is_ingested, manifest_dates, manifest_identity, manifest_signature
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import (
    REJECTED_SUBMISSIONS,
    VERIFICATION_RESPONSES,
    VERIFICATIONS,
    Outcome,
    Reason,
    Table,
)
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.held import dates_to_send_again

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
        if day in again or _needs_run(settings, lake, day) or _lacks_files(lake, day):
            due.days.append(day)
    return due


def unreadable_key(settings: Settings, day: str) -> str:
    """The key of the run for the unreadable files of `day`: another one as soon as the files change."""
    try:
        return f"{day}:unreadable:{manifest_signature(settings.kyc_landing, day)}"
    except KycError:
        return f"{day}:unreadable"


def left_behind(settings: Settings, lake: Lake, days: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Ranges (first, last) of the `days` that a failed ingest of other days kept from their own work.

    Dagster runs no step after one that failed, though it failed for one day of ten. These days are ingested
    as their manifests now are, so running them again does not meet the same failure.
    """
    yield from contiguous_ranges(
        [
            day
            for day in days
            if is_ingested(settings.kyc_landing, lake, day) and _needs_run(settings, lake, day)
        ]
    )


def _needs_run(settings: Settings, lake: Lake, day: str) -> bool:
    """Whether a table of the day is missing, broken or older than its manifests, or the day is incomplete."""
    if not is_ingested(settings.kyc_landing, lake, day) or not lake.exists(VERIFICATIONS, day):
        return True
    try:
        return not INCOMPLETE.isdisjoint(_values(lake, VERIFICATION_RESPONSES, day, "outcome"))
    except KycError:
        return True


def _lacks_files(lake: Lake, day: str) -> bool:
    """Whether rows of the day were rejected for want of a file, which may have arrived since."""
    try:
        return Reason.FILE_NOT_FOUND.value in _values(lake, REJECTED_SUBMISSIONS, day, "reason")
    except KycError:
        return True


def _values(lake: Lake, table: Table, day: str, column: str) -> set[object]:
    """The column's values."""
    return set(pc.unique(lake.read(table, day, [column])[column]).to_pylist())


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
