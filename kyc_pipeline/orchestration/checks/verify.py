"""Checks of a day's outcomes."""

from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.verify.reconcile import Reconciliation
from kyc_pipeline.verify.summary import VerifySummary
from kyc_pipeline.vocabulary import LEFT_FOR_LATER, Outcome
from kyc_pipeline.wording import plural, run_day_again

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


def check_partition(reconciliation: Reconciliation, summary: VerifySummary) -> list[CheckResult]:
    """The checks of one day."""
    day, of_all = summary.date, f"of {plural(summary.submissions, 'submission')}"
    count = {outcome: summary.outcomes.get(outcome, 0) for outcome in Outcome}
    unsettled = summary.held + count[Outcome.QUARANTINED]
    left = sum(count[outcome] for outcome in LEFT_FOR_LATER)
    return [
        ACCOUNTED_FOR.result(
            not reconciliation.differences,
            f"{day}: {plural(reconciliation.submissions, 'submission')}, each with one outcome",
            f"{day}: {reconciliation.outcomes} outcomes, {reconciliation.submissions} submissions"
            + "".join(f"; {difference}" for difference in reconciliation.differences)
            + f": {run_day_again(day)}",
            submissions=reconciliation.submissions,
            outcomes=reconciliation.outcomes,
            in_ledger=reconciliation.in_ledger,
        ),
        NONE_UNSETTLED.result(
            unsettled == 0,
            f"{day}: none {of_all} is held or quarantined",
            f"{day}: {summary.held} {of_all} held: decide with `kyc-pipeline held list`; "
            f"{count[Outcome.QUARANTINED]} quarantined: read the responses in verification_responses",
            held=summary.held,
            uncertain=count[Outcome.UNCERTAIN],
            quarantined=count[Outcome.QUARANTINED],
        ),
        ALL_ATTEMPTED.result(
            left == 0,
            f"{day}: none {of_all} is left",
            f"{day}: {left} {of_all} left: "
            + (f"{summary.why}; " if summary.why else "")
            + f"{run_day_again(day)}",
            failed=count[Outcome.FAILED],
            not_attempted=count[Outcome.NOT_ATTEMPTED],
        ),
    ]
