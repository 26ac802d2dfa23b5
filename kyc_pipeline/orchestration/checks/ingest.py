"""Checks of a day's ingest."""

from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity
from kyc_pipeline.ingest.manifests import IngestSummary
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.rules import REJECTED_ROWS, REJECTED_SHARE, has_many_rejections

RECONCILES = CheckDefinition(
    SUBMISSIONS.name,
    "received_reconciles",
    Severity.ERROR,
    "Every row of the manifests was accepted or rejected.",
)
FEW_REJECTIONS = CheckDefinition(
    REJECTED_SUBMISSIONS.name,
    "few_rejections",
    Severity.WARNING,
    f"Fewer than {REJECTED_ROWS} of the day's rows, or less than {REJECTED_SHARE:.0%}, were rejected.",
)
FILES_TAKEN = CheckDefinition(
    SUBMISSIONS.name,
    "every_file_taken",
    Severity.WARNING,
    "Every file in the day's folder is a manifest.",
)
CHECKS = (RECONCILES, FEW_REJECTIONS, FILES_TAKEN)


def check_partition(summary: IngestSummary) -> list[CheckResult]:
    """The checks of one day."""
    rejected = sum(summary.rejected.values())
    share = rejected / summary.received if summary.received else 0.0
    lost = summary.received - summary.accepted_rows - rejected
    return [
        RECONCILES.result(
            lost == 0,
            _reconciliation(summary, lost),
            received=summary.received,
            accepted=summary.accepted,
            rejected=rejected,
        ),
        FEW_REJECTIONS.result(
            not has_many_rejections(rejected, summary.received),
            f"{rejected} of {summary.received} rows were rejected; reasons are in rejected_submissions",
            share=share,
        ),
        FILES_TAKEN.result(
            not summary.ignored_files,
            f"{len(summary.ignored_files)} files or folders were not read, because of their names",
            ignored=len(summary.ignored_files),
        ),
    ]


def _reconciliation(summary: IngestSummary, lost: int) -> str:
    if lost:
        return f"{lost} rows are unaccounted for: ingest again"
    return "every row is accounted for" if summary.manifests else "no manifests"
