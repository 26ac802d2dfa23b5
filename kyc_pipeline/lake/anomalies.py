"""What can be odd about one answer: the codes in `verifications.anomalies`.

A code never carries a value of the answer, so it can be shown, logged and counted. Every kind of contract
drift is also an anomaly of the answers where it occurs.
"""

from enum import StrEnum

from kyc_pipeline.lake.tables import DriftKind


class Anomaly(StrEnum):
    """A code; `description` says in a sentence what it means for the data."""

    description: str

    def __new__(cls, value: str, description: str) -> "Anomaly":
        member = str.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member

    UNKNOWN_FIELD = (
        DriftKind.UNKNOWN_FIELD,
        "A field that the contract does not know; only the raw answer has it.",
    )
    MISSING_FIELD = DriftKind.MISSING_FIELD, "A field of the contract is absent; its column is NULL."
    NULL_FIELD = DriftKind.NULL_FIELD, "A field of the contract is null; its column is NULL."
    EMPTY_FIELD = DriftKind.EMPTY_FIELD, "A field of the contract is an empty text, list or object."
    DUPLICATE_FIELD = DriftKind.DUPLICATE_FIELD, "A key occurs twice in one object; the last one counts."
    TYPE_MISMATCH = (
        DriftKind.TYPE_MISMATCH,
        "A field has another type than the contract says; its column is NULL.",
    )
    UNKNOWN_TYPE = DriftKind.UNKNOWN_TYPE, "A check of a type that the contract does not know."
    UNKNOWN_STATUS = (
        DriftKind.UNKNOWN_STATUS,
        "A check's status is not in the status table: UNKNOWN, never PASS.",
    )
    CONFIDENCE_OUT_OF_RANGE = (
        DriftKind.CONFIDENCE_OUT_OF_RANGE,
        "A confidence is not within 0 and 1; `confidence` is NULL, `confidence_raw` keeps it.",
    )
    GEOMETRY_REMOVED = (
        DriftKind.GEOMETRY_REMOVED,
        "The answer held biometric geometry, which was cut before storing.",
    )

    CONFIDENCE_NOT_A_NUMBER = (
        "confidence_not_a_number",
        "A confidence is a text, a boolean or nested; `confidence` is NULL, `confidence_raw` keeps it.",
    )
    TIMESTAMP_MILLISECONDS = (
        "timestamp_milliseconds",
        "A time stamp was in milliseconds and was read as such.",
    )
    TIMESTAMP_OUT_OF_RANGE = (
        "timestamp_out_of_range",
        "A time stamp is no time in seconds or milliseconds: NULL.",
    )
    TIMESTAMP_ISO_UNREADABLE = (
        "timestamp_iso_unreadable",
        "The ISO text is no date and time; no offset was computed.",
    )
    FIELD_CONFLICT = (
        "field_conflict",
        "A field occurs under two of its names with different values; the first counts.",
    )
    TAG_REPEATED = "tag_repeated", "A tag's name occurs more than once; every occurrence has a row."
    TAG_WITHOUT_NAME = "tag_without_name", "A tag has no name, so no row; the raw answer keeps it."
    INVALID_UNICODE = "invalid_unicode", "A text is not valid Unicode; what is invalid shows as U+FFFD."
    ECHO_SIZE_MISMATCH = "echo_size_mismatch", "The answer gives another file size than was sent."
    ECHO_TAGS_MISMATCH = "echo_tags_mismatch", "The answer has a tag that was not sent, or another value."
    ECHO_TAGS_MISSING = "echo_tags_missing", "A tag that was sent is not in the answer."
    SUBMISSION_MISSING = (
        "submission_missing",
        "No accepted submission has this id, so nothing sent could be compared.",
    )
