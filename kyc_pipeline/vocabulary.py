"""The project's vocabulary: tags, manifests, reasons, outcomes, statuses, drift, anomalies.

The fields of a response are in `deepxl/contract.py`.
"""

from enum import StrEnum
from typing import Final

SUBMISSION_TAG: Final = "submissionId"
"""The pipeline adds this tag to every request and looks verifications up by it. Manifests must not use it."""
COMPANY_TAG: Final = "companyId"
COMPANY_NAME_TAG: Final = "companyName"
"""The tags with the id and the name of the company whose customer a person is."""
SUBJECT_TAGS: Final = (COMPANY_TAG, "customerId")
"""The tags that identify a person, unless `KYC_SUBJECT_TAGS` names others."""
PARTITION_TAG: Final = "dagster/partition"
RANGE_START_TAG: Final = "dagster/asset_partition_range_start"
RANGE_END_TAG: Final = "dagster/asset_partition_range_end"
"""Dagster's tags of a run: its one day, or its first and its last day."""
TECHNICAL_CHECKS: Final = "technicalChecks"
"""The group of checks in every response."""
MANIFEST_FIELDS: Final = ("submission_id", "id_file", "selfie_file", "tags", "submitted_at", "consent")
"""The columns of a manifest, apart from one column for each tag."""
REQUIRED_FIELDS: Final = MANIFEST_FIELDS[:3]
LABEL_FIELDS: Final = ("submission_id", "label", "source", "decided_at", "attack", "weight", "stratum")
"""The columns of a manifest of labels; the first four are required."""


class DocumentType(StrEnum):
    """Media types that a document may have."""

    JPEG = "image/jpeg"
    PNG = "image/png"
    WEBP = "image/webp"
    HEIC = "image/heic"
    PDF = "application/pdf"
    MP4 = "video/mp4"
    QUICKTIME = "video/quicktime"
    WEBM = "video/webm"


DOCUMENT_TYPES: Final = frozenset(DocumentType) - {DocumentType.HEIC}
"""What DeepXL takes, as far as its documentation says."""


class Reason(StrEnum):
    """Why a manifest row cannot be submitted."""

    MALFORMED_ROW = "malformed_row"
    MISSING_FIELD = "missing_field"
    INVALID_SUBMISSION_ID = "invalid_submission_id"
    DUPLICATE_SUBMISSION_ID = "duplicate_submission_id"
    CONFLICTING_SUBMISSION_ID = "conflicting_submission_id"
    INVALID_TAGS = "invalid_tags"
    RESERVED_TAG = "reserved_tag"
    INVALID_SUBMITTED_AT = "invalid_submitted_at"
    PATH_OUTSIDE_DOCUMENTS = "path_outside_documents"
    FILE_NOT_FOUND = "file_not_found"
    FILE_EMPTY = "file_empty"
    FILE_TOO_LARGE = "file_too_large"
    UNSUPPORTED_FILE_TYPE = "unsupported_file_type"
    UNREADABLE_IMAGE = "unreadable_image"
    ERASED_SUBJECT = "erased_subject"
    DUPLICATE_DOCUMENTS = "duplicate_documents"
    """Only with `KYC_DUPLICATE_DOCUMENTS=reject`."""
    MISSING_CONSENT = "missing_consent"
    """Only with `KYC_REQUIRE_CONSENT`."""


class Label(StrEnum):
    """What was found out about a submission afterwards."""

    GENUINE = "genuine"
    FRAUD = "fraud"
    UNSURE = "unsure"


class Attack(StrEnum):
    """The kind of a fraud."""

    PRESENTATION = "presentation"
    """Somebody deceived the camera: a mask, a photo or a screen."""
    DOCUMENT = "document"
    OTHER = "other"


class LabelReason(StrEnum):
    """Why a row of a manifest of labels is rejected."""

    MALFORMED_ROW = "malformed_row"
    MISSING_FIELD = "missing_field"
    INVALID_SUBMISSION_ID = "invalid_submission_id"
    INVALID_LABEL = "invalid_label"
    INVALID_SOURCE = "invalid_source"
    INVALID_DECIDED_AT = "invalid_decided_at"
    INVALID_ATTACK = "invalid_attack"
    INVALID_WEIGHT = "invalid_weight"
    INVALID_STRATUM = "invalid_stratum"
    DUPLICATE_LABEL = "duplicate_label"
    ERASED_SUBJECT = "erased_subject"
    UNREADABLE_FILE = "unreadable_file"
    """The whole file; the labels that it had stay."""


class Outcome(StrEnum):
    """The result of an accepted submission; each has exactly one."""

    COMPLETED = "completed"
    """The API's response meets the hard contract."""
    REFUSED = "refused"
    """The API refused it for good (400, 413, 415, 422; 403 and 404 if others succeed)."""
    QUARANTINED = "quarantined"
    """The response breaks the hard contract; not sent again unless an operator reopens it."""
    UNCERTAIN = "uncertain"
    """Sent, but without a sound response, and a look-up did not settle it; held for a decision."""
    ABANDONED = "abandoned"
    """It was uncertain, and an operator decided never to send it again."""
    FAILED = "failed"
    """Not processed, as far as DeepXL reports; a later run sends it, after a look-up if it was sent whole."""
    NOT_ATTEMPTED = "not_attempted"
    """The run stopped or its budget ran out before this submission."""


SETTLED: Final = (Outcome.COMPLETED, Outcome.REFUSED, Outcome.QUARANTINED)
"""Outcomes of submissions that were paid for, or refused, and that no later run sends."""
LEFT_FOR_LATER: Final = (Outcome.FAILED, Outcome.NOT_ATTEMPTED)
"""Outcomes of submissions that a later run sends."""
WITHOUT_RESPONSE: Final = (Outcome.UNCERTAIN, Outcome.ABANDONED)
"""Outcomes of submissions that were sent, but without a sound response."""
UNDECIDED: Final = (Outcome.UNCERTAIN, *LEFT_FOR_LATER)
"""Outcomes of submissions whose verdict may still come without an operator's reopening."""


class CheckStatus(StrEnum):
    """The normalised status of a check; the received status is kept too."""

    PASS = "PASS"
    FAIL = "FAIL"
    REVIEW = "REVIEW"
    NOT_EVALUATED = "NOT_EVALUATED"
    ERROR = "ERROR"
    PENDING = "PENDING"
    UNKNOWN = "UNKNOWN"


class DriftKind(StrEnum):
    """How a response differs from the contract."""

    UNKNOWN_FIELD = "unknown_field"
    MISSING_FIELD = "missing_field"
    NULL_FIELD = "null_field"
    EMPTY_FIELD = "empty_field"
    DUPLICATE_FIELD = "duplicate_field"
    TYPE_MISMATCH = "type_mismatch"
    UNKNOWN_TYPE = "unknown_type"
    UNKNOWN_STATUS = "unknown_status"
    CONFIDENCE_OUT_OF_RANGE = "confidence_out_of_range"
    GEOMETRY_REMOVED = "geometry_removed"


class Anomaly(StrEnum):
    """An anomaly of one response: the codes in `verifications.anomalies`.

    `description` says what a code means for the data. A code contains no value of the response, so it can be
    shown, logged and counted. Every kind of contract drift is also an anomaly of the response that has it.
    """

    description: str

    def __new__(cls, value: str, description: str) -> "Anomaly":
        member = str.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member

    UNKNOWN_FIELD = (
        DriftKind.UNKNOWN_FIELD,
        "A field that is not in the contract; only the raw response keeps it.",
    )
    MISSING_FIELD = DriftKind.MISSING_FIELD, "A field of the contract is absent; its column is NULL."
    NULL_FIELD = DriftKind.NULL_FIELD, "A field of the contract is null; its column is NULL."
    EMPTY_FIELD = DriftKind.EMPTY_FIELD, "A field of the contract is an empty text, list or object."
    DUPLICATE_FIELD = DriftKind.DUPLICATE_FIELD, "A key occurs twice in one object; the last one counts."
    TYPE_MISMATCH = (
        DriftKind.TYPE_MISMATCH,
        "A field's type differs from the contract; its column is NULL.",
    )
    UNKNOWN_TYPE = DriftKind.UNKNOWN_TYPE, "A check whose type is not in the contract."
    UNKNOWN_STATUS = (
        DriftKind.UNKNOWN_STATUS,
        "A check's status is not in the status table: UNKNOWN, never PASS.",
    )
    CONFIDENCE_OUT_OF_RANGE = (
        DriftKind.CONFIDENCE_OUT_OF_RANGE,
        "A confidence is outside 0 to 1; `confidence` is NULL, `confidence_raw` keeps it.",
    )
    GEOMETRY_REMOVED = (
        DriftKind.GEOMETRY_REMOVED,
        "The response held biometric geometry, which was removed before storing.",
    )

    CONFIDENCE_NOT_A_NUMBER = (
        "confidence_not_a_number",
        "A confidence is a text, a boolean or nested; `confidence` is NULL, `confidence_raw` OTHER.",
    )
    TIMESTAMP_MILLISECONDS = (
        "timestamp_milliseconds",
        "A timestamp was in milliseconds and was read as such.",
    )
    TIMESTAMP_OUT_OF_RANGE = (
        "timestamp_out_of_range",
        "A timestamp is valid neither in seconds nor in milliseconds; its column is NULL.",
    )
    TIMESTAMP_ISO_UNREADABLE = (
        "timestamp_iso_unreadable",
        "The ISO text is not a date and time, so there is no offset.",
    )
    FIELD_CONFLICT = (
        "field_conflict",
        "A field occurs under two of its names with different values; the first counts.",
    )
    TAG_REPEATED = "tag_repeated", "A tag's name occurs more than once; every occurrence has a row."
    TAG_WITHOUT_NAME = "tag_without_name", "A tag has no name, so no row; the raw response keeps it."
    TEXT_WITHHELD = (
        "text_withheld",
        "A text that may be personal is OTHER in the tables; the raw response keeps it.",
    )
    INVALID_UNICODE = "invalid_unicode", "A text is not valid Unicode; U+FFFD replaces the invalid parts."
    ECHO_SIZE_MISMATCH = "echo_size_mismatch", "A file size in the response differs from the one sent."
    ECHO_TAGS_MISMATCH = (
        "echo_tags_mismatch",
        "A tag in the response was not sent, or its value differs.",
    )
    ECHO_TAGS_MISSING = "echo_tags_missing", "A tag that was sent is missing from the response."
    SUBMISSION_MISSING = (
        "submission_missing",
        "No accepted submission has this id, so the echo could not be compared.",
    )
