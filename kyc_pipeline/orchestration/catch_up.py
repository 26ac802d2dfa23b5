"""Which partitions a scheduler has to run: missing, incomplete, or with manifests that changed."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta

import pyarrow.compute as pc

from kyc_pipeline.ingest.manifests import is_ingested, manifest_dates
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES, VERIFICATIONS, Outcome
from kyc_pipeline.settings import Settings

INCOMPLETE = (Outcome.FAILED.value, Outcome.NOT_ATTEMPTED.value)


def partitions_to_run(settings: Settings, lake: Lake, *, until: date) -> list[str]:
    """The days with manifests, within `KYC_CATCH_UP_DAYS` before and with `until`, that need a run."""
    first = max(settings.kyc_start_date, until - timedelta(days=settings.kyc_catch_up_days - 1))
    return [
        day
        for day in manifest_dates(settings.kyc_landing)
        if first.isoformat() <= day <= until.isoformat() and _needs_run(settings, lake, day)
    ]


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
    if not is_ingested(settings.kyc_landing, lake, day):
        return True
    if not all(lake.exists(table, day) for table in (VERIFICATION_RESPONSES, VERIFICATIONS)):
        return True
    outcomes = lake.read(VERIFICATION_RESPONSES, day, ["outcome"])["outcome"]
    return any(
        count["counts"].as_py()
        for count in pc.value_counts(outcomes)
        if count["values"].as_py() in INCOMPLETE
    )


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
