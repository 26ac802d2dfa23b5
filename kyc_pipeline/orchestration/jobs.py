"""The jobs over assets, and the tags of their runs."""

from collections.abc import Mapping
from datetime import date, timedelta

import dagster as dg

VERIFY_AND_PUBLISH = "verify_and_publish"
FLATTEN_AND_PUBLISH = "flatten_and_publish"

TODAY = {"dagster/priority": "10"}
"""Of runs for what has just come: the queue takes them before a backfill's, whose priority is 0."""
CATCH_UP = {"dagster/priority": "5"}
"""Of runs for what was missed."""
# In one process: a step costs 0.1 s instead of 2.5 s, and a run is already a process of its own.
EXECUTOR = dg.in_process_executor


verify_and_publish = dg.define_asset_job(
    VERIFY_AND_PUBLISH,
    selection=dg.AssetSelection.all(),
    description="Ingest, verify (paid) and flatten the run's days; publish warehouse and report.",
    executor_def=EXECUTOR,
)
"""The job over all assets: the daily ones for the run's day or range of days, then the warehouse."""

flatten_and_publish = dg.define_asset_job(
    FLATTEN_AND_PUBLISH,
    selection=dg.AssetSelection.groups("flatten", "analyze"),
    description="Re-flatten only: makes the curated tables again from the answers that are there, and "
    "publishes. Makes no call and costs nothing. For after an upgrade that reads answers better.",
    executor_def=EXECUTOR,
)
"""Without the paid step: it cannot spend anything."""


RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def range_tags(first: str, last: str) -> dict[str, str]:
    """The run tags by which Dagster runs the days from `first` to `last` as one run."""
    return {RANGE_START: first, RANGE_END: last}


def range_days(tags: Mapping[str, str]) -> list[str]:
    """The days of a run with these tags; none where it is not a run over a range of days."""
    if RANGE_START not in tags or RANGE_END not in tags:
        return []
    first, last = (date.fromisoformat(tags[name]) for name in (RANGE_START, RANGE_END))
    return [(first + timedelta(days=offset)).isoformat() for offset in range((last - first).days + 1)]
