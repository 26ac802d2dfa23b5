"""Which partitions a scheduler has to run: missing, incomplete, or with manifests that changed."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta

import pyarrow.compute as pc

from kyc_pipeline.ingest.manifests import manifest_dates, manifest_identity
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES, VERIFICATIONS, Outcome
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


def _needs_run(settings: Settings, lake: Lake, day: str) -> bool:
    if not all(lake.exists(table, day) for table in (SUBMISSIONS, VERIFICATION_RESPONSES, VERIFICATIONS)):
        return True
    if lake.metadata(SUBMISSIONS, day).get("manifests") != manifest_identity(settings.kyc_landing, day):
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
