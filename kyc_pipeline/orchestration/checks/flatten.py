"""Checks of a day's curated tables.

A deviation from the contract is a warning: the raw response is kept, and the figures stay exact. A missing or
duplicate row is an error. Rules that the warehouse also checks, over all days (`sql/checks/`), are checked
here by the same SQL over one day. Flatten noted the other deviations as anomalies: the checks count them.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.analyze.quality import violations_of_day
from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity
from kyc_pipeline.flatten.partition import FlattenSummary
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import CONTRACT_DRIFT, MODEL_CHECKS, VERIFICATIONS, Table
from kyc_pipeline.rules import (
    ISO_OFFSET_SECONDS,
    UNEXPECTED_FIELDS,
    UNEXPECTED_TYPES,
    UNKNOWN_STATUSES,
    UNUSABLE_CONFIDENCES,
)
from kyc_pipeline.vocabulary import Anomaly
from kyc_pipeline.wording import plural, run_day_again


def _warning(table: Table, name: str, description: str) -> CheckDefinition:
    return CheckDefinition(table.name, name, Severity.WARNING, description)


RECONCILES = CheckDefinition(
    VERIFICATIONS.name,
    "answers_reconcile",
    Severity.ERROR,
    "Every completed response has one verification and belongs to an accepted submission.",
)
UNIQUE = CheckDefinition(
    VERIFICATIONS.name,
    "verification_ids_unique",
    Severity.ERROR,
    "No verification id occurs twice in the day.",
)
CONSISTENT = _warning(
    VERIFICATIONS,
    "verified_agrees_with_checks",
    "`verified` agrees with the checks: it is true if and only if no check failed.",
)
_SAME_AS: Mapping[CheckDefinition, str] = {
    UNIQUE: "verification_ids_are_unique",
    CONSISTENT: "verdicts_agree_with_checks",
}
"""Check of a day → the check of the warehouse with the same rule."""
TIMESTAMPS = _warning(VERIFICATIONS, "timestamps_readable", "Every timestamp can be read.")
ANOMALIES: Sequence[tuple[CheckDefinition, tuple[Anomaly, ...]]] = (
    (
        _warning(MODEL_CHECKS, "confidence_in_range", "Every confidence is a number between 0 and 1."),
        UNUSABLE_CONFIDENCES,
    ),
    (
        _warning(MODEL_CHECKS, "statuses_known", "Every check's status is in the status table."),
        UNKNOWN_STATUSES,
    ),
    (
        _warning(MODEL_CHECKS, "types_known", "Every check's type is in the contract."),
        UNEXPECTED_TYPES,
    ),
    (
        _warning(CONTRACT_DRIFT, "fields_known", "Every field has a name and a type of the contract."),
        (*UNEXPECTED_FIELDS, Anomaly.FIELD_CONFLICT),
    ),
    (
        _warning(VERIFICATIONS, "echo_matches", "The response echoes the sizes and tags that were sent."),
        (Anomaly.ECHO_SIZE_MISMATCH, Anomaly.ECHO_TAGS_MISMATCH, Anomaly.ECHO_TAGS_MISSING),
    ),
    (TIMESTAMPS, (Anomaly.TIMESTAMP_OUT_OF_RANGE, Anomaly.TIMESTAMP_ISO_UNREADABLE)),
)
CHECKS = (RECONCILES, UNIQUE, CONSISTENT, *(definition for definition, _ in ANOMALIES))


def check_partition(lake: Lake, day: str, summary: FlattenSummary) -> list[CheckResult]:
    """The checks of one day."""
    verifications = plural(summary.verifications, "verification")
    lost = summary.completed - summary.verifications
    violations = violations_of_day(lake, day, _SAME_AS.values())
    repeated, disagreeing = (violations[_SAME_AS[check]] for check in (UNIQUE, CONSISTENT))
    return [
        RECONCILES.result(
            lost == 0 and summary.without_submission == 0,
            f"{day}: {plural(summary.completed, 'completed response')}, each with one verification",
            f"{day}: {plural(lost, 'completed response')} without a verification, "
            f"{summary.without_submission} without a submission: {run_day_again(day)}",
            completed=summary.completed,
            verifications=summary.verifications,
            without_submission=summary.without_submission,
        ),
        UNIQUE.result(
            repeated == 0,
            f"{day}: {verifications}, each with its own id",
            f"{day}: {plural(repeated, 'verification id')} more than once: see docs/operations.md",
            repeated=repeated,
        ),
        CONSISTENT.result(
            disagreeing == 0,
            f"{day}: `verified` agrees with the checks of {verifications}",
            f"{day}: {plural(disagreeing, 'verification')} verified with a failed check, or declined without "
            "one: read failure_attribution",
            disagreeing=disagreeing,
        ),
        *(
            _anomaly_result(
                definition, codes, day, summary, _iso_offsets(lake, day) if definition is TIMESTAMPS else {}
            )
            for definition, codes in ANOMALIES
        ),
    ]


def _anomaly_result(
    definition: CheckDefinition,
    codes: tuple[Anomaly, ...],
    day: str,
    summary: FlattenSummary,
    figures: Mapping[str, float],
) -> CheckResult:
    found = {code: summary.anomalies[code.value] for code in codes if summary.anomalies[code.value]}
    return definition.result(
        not found,
        f"{day}: {definition.description.rstrip('.')} ({plural(summary.verifications, 'response')})",
        f"{day}: "
        + "; ".join(
            f"{plural(count, 'response')}: {code.description.rstrip('.')}" for code, count in found.items()
        )
        + ": read verifications.anomalies and contract_drift",
        **{code.value: count for code, count in found.items()},
        **figures,
    )


def _iso_offsets(lake: Lake, day: str) -> Mapping[str, float]:
    """How far `timestampISO`, read as UTC, is from `timestamp`; they differ even in the API's example."""
    offsets = lake.read(VERIFICATIONS, day, ["iso_offset_seconds"])["iso_offset_seconds"]
    if offsets.null_count == len(offsets):
        return {}
    differing = offsets.filter(pc.greater_equal(pc.abs(offsets), pa.scalar(ISO_OFFSET_SECONDS)))
    return {"iso_differs": len(differing), "median_iso_offset_seconds": pc.quantile(offsets)[0].as_py()}
