"""Checks of a day's outcomes."""

from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.verify.reconcile import Reconciliation
from kyc_pipeline.verify.summary import VerifySummary
from kyc_pipeline.vocabulary import LEFT_FOR_LATER, Outcome

ACCOUNTED_FOR = CheckDefinition(
    VERIFICATION_RESPONSES.name,
    "every_submission_accounted_for",
    Severity.ERROR,
    "Every accepted submission has exactly one outcome, and it is the ledger's.",
)
NONE_UNSETTLED = CheckDefinition(
    VERIFICATION_RESPONSES.name,
    "none_uncertain_or_quarantined",
    Severity.WARNING,
    "No submission is held or quarantined.",
)
ALL_ATTEMPTED = CheckDefinition(
    VERIFICATION_RESPONSES.name,
    "all_attempted",
    Severity.WARNING,
    "No submission failed or was left for a later run.",
)
CHECKS = (ACCOUNTED_FOR, NONE_UNSETTLED, ALL_ATTEMPTED)


def check_partition(accounts: Reconciliation, summary: VerifySummary) -> list[CheckResult]:
    """The checks of one day."""
    count = {outcome: summary.outcomes.get(outcome, 0) for outcome in Outcome}
    unsettled = summary.held + count[Outcome.QUARANTINED]
    left = sum(count[outcome] for outcome in LEFT_FOR_LATER)
    return [
        ACCOUNTED_FOR.result(
            not accounts.differences,
            f"{accounts.outcomes} outcomes for {accounts.submissions} submissions"
            + "".join(f"; {difference}" for difference in accounts.differences)
            + (": run the partition again" if accounts.differences else ""),
            submissions=accounts.submissions,
            outcomes=accounts.outcomes,
            in_ledger=accounts.in_ledger,
        ),
        NONE_UNSETTLED.result(
            unsettled == 0,
            f"{summary.held} held (decide with `kyc-pipeline held`), "
            f"{count[Outcome.QUARANTINED]} quarantined",
            held=summary.held,
            uncertain=count[Outcome.UNCERTAIN],
            quarantined=count[Outcome.QUARANTINED],
        ),
        ALL_ATTEMPTED.result(
            left == 0,
            f"{left} submissions are left: run the partition again",
            failed=count[Outcome.FAILED],
            not_attempted=count[Outcome.NOT_ATTEMPTED],
        ),
    ]
