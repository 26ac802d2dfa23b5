"""The job that records an operator's decision about a held submission."""

from typing import Literal

import dagster as dg
from pydantic import Field

from kyc_pipeline.ledger.decisions import operator, resolve_held
from kyc_pipeline.orchestration.failures import fails_plainly
from kyc_pipeline.orchestration.resources import Pipeline


class ResolveHeldConfig(dg.Config):
    """One decision about one held submission."""

    submission_id: str = Field(description="The held submission's id; `kyc-pipeline held list` shows them.")
    decision: Literal["retry", "abandon"] = Field(
        description="retry: look once more, then send again, which may be paid twice; abandon: never again."
    )


@dg.op(description="Records the decision in the ledger; the next run of the submission's day acts on it.")
@fails_plainly
def record_decision(
    context: dg.OpExecutionContext, config: ResolveHeldConfig, pipeline: dg.ResourceParam[Pipeline]
) -> None:
    """Raises :class:`~dagster.Failure` where the submission is not held."""
    with pipeline.open_ledger() as ledger:
        resolve_held(ledger, config.submission_id, config.decision, f"{operator()}, run {context.run_id}")
    context.log.info(f"{config.submission_id}: {config.decision}")


@dg.job(description="Decide about a held submission: send it again, or never.")
def resolve_held_submission() -> None:
    """What `kyc-pipeline held resolve` does, from the launchpad.

    Who decided is no configuration, since that is shown with the run for ever: the ledger keeps the run's id
    and the name of the user that it ran as.
    """
    record_decision()
