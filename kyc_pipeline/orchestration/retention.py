"""The job `retention`: reports what is due for removal, and removes it if `KYC_RETENTION_APPLY` is set.

It removes data with the command `kyc-pipeline retention --apply` in another process, so that there is one way
to do it, and because the command publishes the warehouse in a run of its own, which a step cannot start.
"""

import subprocess
import sys
from datetime import UTC, datetime

import dagster as dg

from kyc_pipeline.erasure.relationships import Relationships
from kyc_pipeline.erasure.retention import RetentionPeriods, make_plan
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.errors import KycError
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.wording import plural


@dg.op(description="Reports what is due for removal. Removes it if KYC_RETENTION_APPLY is set.")
@safe_errors
def apply_retention(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> None:
    """Adds the counts by class as metadata. Raises :class:`KycError` if the command fails."""
    settings = pipeline.settings
    rules = RetentionPeriods.of(settings)
    with pipeline.open_ledger() as ledger:
        stores = Stores.of(settings, ledger, pipeline.pseudonymizer)
        relationships = Relationships(settings.kyc_landing, stores.pseudonymizer)
        plan = make_plan(stores, relationships, rules, datetime.now(UTC).date())
    is_removal = settings.kyc_retention_apply and not plan.is_empty
    context.add_output_metadata(
        {
            **{name: count for name, count in plan.counts(rules).items() if count is not None},
            "removed": is_removal,
        }
    )
    for hold, count in plan.held.items():
        context.log.info(f"kept: {plural(count, 'submission')} under {hold}")
    if not is_removal:
        context.log.info("nothing is due" if plan.is_empty else "due, but KYC_RETENTION_APPLY is not set")
        return
    command = [sys.executable, "-m", "kyc_pipeline.cli", "retention", "--apply"]
    ended = subprocess.run(
        [*command, "--reason", f"job retention, run {context.run_id}"],
        capture_output=True,
        text=True,
        check=False,
    )
    context.log.info(ended.stdout.strip())
    if ended.returncode:
        raise KycError((ended.stderr.strip() or "the command failed").splitlines()[-1])


@dg.job(
    description="Report, and with KYC_RETENTION_APPLY remove, data whose retention period is over.",
    tags={"dagster/priority": "-5"},
)
def retention() -> None:
    apply_retention()
