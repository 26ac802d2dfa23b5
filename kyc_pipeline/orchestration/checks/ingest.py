"""Checks of a day's ingest, and of labels."""

from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity
from kyc_pipeline.ingest.labels import LabelsSummary
from kyc_pipeline.ingest.manifests import IngestSummary, kinds_of
from kyc_pipeline.lake.tables import LABELS, REJECTED_LABELS, REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.rules import REJECTED_ROWS, REJECTED_SHARE, has_many_rejections
from kyc_pipeline.wording import plural, run_again

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
LABELS_READ = CheckDefinition(
    LABELS.name,
    "every_file_read",
    Severity.WARNING,
    "Every file in labels/ is a manifest and could be read; labels of others stay as they were.",
)
FEW_REJECTED_LABELS = CheckDefinition(
    REJECTED_LABELS.name,
    "few_rejected_labels",
    Severity.WARNING,
    f"Fewer than {REJECTED_ROWS} rows of labels, or less than {REJECTED_SHARE:.0%}, were rejected.",
)
CHECKS = (RECONCILES, FEW_REJECTIONS, FILES_TAKEN)
LABEL_CHECKS = (LABELS_READ, FEW_REJECTED_LABELS)


def check_partition(summary: IngestSummary) -> list[CheckResult]:
    """The checks of one day."""
    day = summary.date
    rejected = sum(summary.rejected.values())
    share = rejected / summary.received if summary.received else 0.0
    lost = summary.received - summary.accepted_rows - rejected
    return [
        RECONCILES.result(
            lost == 0,
            f"{day}: {plural(summary.received, 'row')}, each accepted or rejected"
            if summary.manifests
            else f"{day}: no manifests",
            f"{day}: {lost} of {summary.received} rows are unaccounted for: ingest the day again, with "
            f"{run_again(day)}",
            received=summary.received,
            accepted=summary.accepted_rows,
            rejected=rejected,
        ),
        FEW_REJECTIONS.result(
            not has_many_rejections(rejected, summary.received),
            f"{day}: {rejected} of {summary.received} rows were rejected",
            f"{day}: {rejected} of {summary.received} rows were rejected: read them with "
            f"`kyc-pipeline rejected --from {day} --to {day}`, and correct the manifest",
            share=share,
        ),
        FILES_TAKEN.result(
            not summary.ignored_files,
            f"{day}: {plural(summary.manifests, 'manifest')}, and no other file",
            f"{day}: {len(summary.ignored_files)} not read, because of the name "
            f"({kinds_of(summary.ignored_files)}): look into manifests/{day}/",
            ignored=len(summary.ignored_files),
        ),
    ]


def check_labels(summary: LabelsSummary | None, problem: str = "") -> list[CheckResult]:
    """The checks of labels. Without a summary, `problem` says why they could not be read."""
    if summary is None:
        kept = f"{problem}; the labels stay as they were"
        return [
            LABELS_READ.result(False, "", kept),
            FEW_REJECTED_LABELS.result(True, "not read", ""),
        ]
    unread = summary.unreadable + summary.ignored_files
    return [
        LABELS_READ.result(
            not unread,
            f"{plural(summary.manifests, 'manifest')} of labels, and no other file",
            f"{summary.unreadable} unreadable, {summary.ignored_files} not read because of the name: see "
            "`kyc-pipeline rejected`, and look into labels/",
            unreadable=summary.unreadable,
            ignored=summary.ignored_files,
        ),
        FEW_REJECTED_LABELS.result(
            not has_many_rejections(summary.rejected_rows, summary.received),
            f"{summary.rejected_rows} of {summary.received} rows of labels were rejected",
            f"{summary.rejected_rows} of {summary.received} rows of labels were rejected: read them with "
            "`kyc-pipeline rejected`, and correct the manifest",
        ),
    ]
