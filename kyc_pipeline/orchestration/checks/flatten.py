"""Checks of a day's curated tables.

A deviation from the contract is a warning: the raw response is kept, and the figures stay exact. A missing or
duplicate row is an error. The warehouse checks uniqueness over all days before publication.
"""

import statistics
from collections.abc import Mapping, Sequence

import pyarrow.compute as pc

from kyc_pipeline.checks import CheckDefinition, CheckResult, Severity
from kyc_pipeline.flatten.partition import FlattenSummary
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import CONTRACT_DRIFT, MODEL_CHECKS, VERIFICATIONS, Table
from kyc_pipeline.rules import ISO_OFFSET_SECONDS, UNEXPECTED_FIELDS, UNEXPECTED_TYPES
from kyc_pipeline.vocabulary import Anomaly, CheckStatus


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
TIMESTAMPS = _warning(VERIFICATIONS, "timestamps_readable", "Every timestamp can be read.")
ANOMALIES: Sequence[tuple[CheckDefinition, tuple[Anomaly, ...]]] = (
    (
        _warning(MODEL_CHECKS, "confidence_in_range", "Every confidence is a number between 0 and 1."),
        (Anomaly.CONFIDENCE_OUT_OF_RANGE, Anomaly.CONFIDENCE_NOT_A_NUMBER),
    ),
    (
        _warning(MODEL_CHECKS, "statuses_known", "Every check's status is in the status table."),
        (Anomaly.UNKNOWN_STATUS,),
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
    lost = summary.completed - summary.verifications
    ids = lake.read(VERIFICATIONS, day, ["verification_id"])["verification_id"]
    repeated = len(ids) - pc.count_distinct(ids).as_py()
    disagreeing = _disagreeing(lake, day)
    return [
        RECONCILES.result(
            lost == 0 and summary.without_submission == 0,
            f"completed responses without a verification: {lost}; without a submission: "
            f"{summary.without_submission}"
            + (": materialize submissions and verification_responses again" if lost else ""),
            completed=summary.completed,
            verifications=summary.verifications,
            without_submission=summary.without_submission,
        ),
        UNIQUE.result(repeated == 0, f"{repeated} verification ids are repeated", repeated=repeated),
        CONSISTENT.result(
            disagreeing == 0,
            f"{disagreeing} verifications are overrides or unexplained declines; see failure_attribution",
            disagreeing=disagreeing,
        ),
        *(
            _anomaly_result(
                definition, codes, summary, _iso_offsets(lake, day) if definition is TIMESTAMPS else {}
            )
            for definition, codes in ANOMALIES
        ),
    ]


def _anomaly_result(
    definition: CheckDefinition,
    codes: tuple[Anomaly, ...],
    summary: FlattenSummary,
    figures: Mapping[str, float],
) -> CheckResult:
    found = {code: summary.anomalies[code.value] for code in codes if summary.anomalies[code.value]}
    return definition.result(
        not found,
        "; ".join(f"{count} responses: {code.description}" for code, count in found.items()) or "none",
        **{code.value: count for code, count in found.items()},
        **figures,
    )


def _iso_offsets(lake: Lake, day: str) -> Mapping[str, float]:
    """How far `timestampISO`, read as UTC, is from `timestamp`; they differ even in the API's example."""
    offsets = lake.read(VERIFICATIONS, day, ["iso_offset_seconds"])["iso_offset_seconds"]
    known = [offset for offset in offsets.to_pylist() if offset is not None]
    if not known:
        return {}
    differing = sum(abs(offset) >= ISO_OFFSET_SECONDS for offset in known)
    return {"iso_differs": differing, "median_iso_offset_seconds": statistics.median(known)}


def _disagreeing(lake: Lake, day: str) -> int:
    """The number of overrides and unexplained declines, as defined in `failure_attribution`."""
    checks = lake.read(MODEL_CHECKS, day, ["verification_id", "normalized_status"])
    failed = checks.filter(pc.field("normalized_status") == CheckStatus.FAIL.value)["verification_id"]
    verifications = lake.read(VERIFICATIONS, day, ["verification_id", "verified"])
    has_failure = pc.is_in(verifications["verification_id"], value_set=failed.combine_chunks())
    return pc.equal(verifications["verified"], has_failure).to_pylist().count(True)
