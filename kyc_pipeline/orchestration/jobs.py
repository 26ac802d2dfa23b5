"""The jobs, and the tags of their runs."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Literal

import dagster as dg
from pydantic import Field

from kyc_pipeline.ledger.decisions import operator, resolve_held
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors

VERIFY_AND_PUBLISH = "verify_and_publish"

TODAY = {"dagster/priority": "10"}
"""Tags of runs for new data: the queue starts them before the runs of a backfill, which have priority 0."""
CATCH_UP = {"dagster/priority": "5"}
"""Tags of runs for what was missed."""
# A step costs 0.1 s instead of 2.5 s, and a run is a process of its own anyway.
EXECUTOR = dg.in_process_executor


verify_and_publish = dg.define_asset_job(
    VERIFY_AND_PUBLISH,
    selection=dg.AssetSelection.all(),
    description="Ingest, verify (paid) and flatten the run's days; publish warehouse and report.",
    executor_def=EXECUTOR,
)
"""All assets: the daily ones for the run's day or range of days, then the warehouse."""

flatten_and_publish = dg.define_asset_job(
    "flatten_and_publish",
    selection=dg.AssetSelection.groups("flatten", "analyze"),
    description="Re-flatten only: rebuilds the curated tables from the stored answers and publishes. Makes "
    "no call and costs nothing. For use after an upgrade that reads answers better.",
    executor_def=EXECUTOR,
)
"""Without the paid step: it cannot spend anything."""


class ResolveHeldConfig(dg.Config):
    """One decision about one held submission."""

    submission_id: str = Field(description="Id of the held submission; `kyc-pipeline held list` shows them.")
    decision: Literal["retry", "abandon"] = Field(
        description="retry: look it up, then send it again, which may cost a second call; abandon: never "
        "send it again."
    )


@dg.op(description="Records the decision in the ledger. The next run of the submission's day applies it.")
@safe_errors
def record_decision(
    context: dg.OpExecutionContext, config: ResolveHeldConfig, pipeline: dg.ResourceParam[Pipeline]
) -> None:
    """Raises :class:`~dagster.Failure` if the submission is not held."""
    with pipeline.open_ledger() as ledger:
        resolve_held(ledger, config.submission_id, config.decision, f"{operator()}, run {context.run_id}")
    context.log.info(f"{config.submission_id}: {config.decision}")


@dg.job(description="Decide about a held submission: send it again, or never.")
def resolve_held_submission() -> None:
    """`kyc-pipeline held resolve` for the launchpad.

    The operator's name is not configuration, which Dagster shows with the run for ever. The ledger stores the
    run's id and the name of the user that the run belongs to.
    """
    record_decision()


RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def range_tags(first: str, last: str) -> dict[str, str]:
    """The run tags that make Dagster run the days from `first` to `last` as one run."""
    return {RANGE_START: first, RANGE_END: last}


def range_days(tags: Mapping[str, str]) -> list[str]:
    """The days of a run with these tags; none if it is not a run over a range of days."""
    if RANGE_START not in tags or RANGE_END not in tags:
        return []
    first, last = (date.fromisoformat(tags[name]) for name in (RANGE_START, RANGE_END))
    return [(first + timedelta(days=offset)).isoformat() for offset in range((last - first).days + 1)]
