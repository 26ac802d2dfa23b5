"""The jobs, and the tags of their runs."""

from collections.abc import Mapping
from typing import Literal

import dagster as dg
from pydantic import Field

from kyc_pipeline.lake.tables import LABEL_TABLES
from kyc_pipeline.ledger.audit import AuditTrail, Author, operator
from kyc_pipeline.ledger.decisions import RESOLUTIONS_HELP, resolve_held
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.orchestration.specs import ANALYZE, FLATTEN
from kyc_pipeline.vocabulary import PARTITION_TAG, RANGE_END_TAG, RANGE_START_TAG

VERIFY_AND_PUBLISH = "verify_and_publish"

NEW_DATA = {"dagster/priority": "10"}
"""Tags of runs for new data: the queue starts them before the runs of a backfill, which have priority 0."""
CATCH_UP = {"dagster/priority": "5"}
"""Tags of the catch-up runs."""
TRIGGER = "kyc/trigger"
"""Tag that says what requested a run."""
COMMAND_LINE = "command line"
"""The tag's value for the runs of `kyc-pipeline`'s commands, which themselves run what a failed run left."""

BACKFILL = "dagster/backfill"
"""Dagster's tag with the id of the run's backfill."""
QUEUED = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED]
STARTED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
"""Statuses of runs that have not ended."""

verify_and_publish = dg.define_asset_job(
    VERIFY_AND_PUBLISH,
    selection=dg.AssetSelection.all(),
    description="Ingest, verify (paid) and flatten the run's days; publish warehouse and report.",
)
"""All assets: the daily ones for the run's partitions, then the warehouse."""

flatten_and_publish = dg.define_asset_job(
    "flatten_and_publish",
    selection=dg.AssetSelection.groups(FLATTEN, ANALYZE),
    description="Rebuild the curated tables from the stored responses, and publish. Makes no call and costs "
    "nothing. For use after an upgrade that changes how responses are read.",
)

labels_and_publish = dg.define_asset_job(
    "labels_and_publish",
    selection=dg.AssetSelection.assets(*(table.name for table in LABEL_TABLES))
    | dg.AssetSelection.groups(ANALYZE),
    description="Read new labels, and publish. Makes no call.",
)


class ResolveHeldConfig(dg.Config):
    """One decision about one held submission."""

    submission_id: str = Field(description="Id of the held submission; `kyc-pipeline held list` shows them.")
    decision: Literal["retry", "abandon"] = Field(description=RESOLUTIONS_HELP)


@dg.op(description="Records the decision in the ledger. The next run of the submission's day applies it.")
@safe_errors
def record_decision(
    context: dg.OpExecutionContext, config: ResolveHeldConfig, pipeline: dg.ResourceParam[Pipeline]
) -> None:
    """Raises :class:`~dagster.Failure` if the submission is not held."""
    with pipeline.open_ledger() as ledger:
        who = f"{operator(pipeline.settings.kyc_operator)}, run {context.run_id}"
        pseudonymizer = pipeline.pseudonymizer  # now: in the transaction, the ledger could not record the key
        trail = AuditTrail(ledger, pipeline.lake, Author(who), lambda: pseudonymizer)
        with trail.noted():
            resolve_held(ledger, config.submission_id, config.decision, who, trail=trail)
    context.log.info(f"{config.submission_id}: {config.decision}")


@dg.job(description="Decide about a held submission: send it again, or abandon it.")
def resolve_held_submission() -> None:
    """`kyc-pipeline held resolve` for the launchpad.

    The run config does not name the operator, because Dagster keeps and shows it. The ledger stores the run's
    id and the user of its process.
    """
    record_decision()


def range_tags(first: str, last: str) -> dict[str, str]:
    """The tags of one run over the days from `first` to `last`."""
    return {RANGE_START_TAG: first, RANGE_END_TAG: last}


def days_of(tags: Mapping[str, str]) -> tuple[str, str] | None:
    """The first and the last day of a run with these tags; None if it is not partitioned."""
    if day := tags.get(PARTITION_TAG):
        return day, day
    first = tags.get(RANGE_START_TAG)
    return (first, tags.get(RANGE_END_TAG, first)) if first else None
