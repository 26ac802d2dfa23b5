"""The data dictionary: every table of the lake and the warehouse's facts, said once.

Arrow schemas, Dagster's column metadata, DuckDB's comments, checks and `docs/data-dictionary.md` come
from here. The partition's day is the folder `date=<D>`, never a column of the file.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import pyarrow as pa


class Zone(StrEnum):
    """Who may read a table: `restricted` holds personal data, `curated` holds none in the clear."""

    RESTRICTED = "restricted"
    CURATED = "curated"


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    `personal` marks values that tell or lead to a person (they may not leave `restricted`).
    `made_from`: fields of the answer (`[]` is any position of a list, `*` any other key) and columns of
    other tables of the lake (`table.column`).
    """

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False
    personal: bool = False
    made_from: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the lake, a Parquet file a day in `<zone>/<name>/date=<D>/`."""

    name: str
    zone: Zone
    description: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """The explicit Arrow schema, with nullability."""
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns])

    def column(self, name: str) -> Column:
        """The column called `name` (KeyError if there is none)."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"{self.name} has no column {name}")


STRING: Final = pa.string()
INT32: Final = pa.int32()
INT64: Final = pa.int64()
DOUBLE: Final = pa.float64()
BOOL: Final = pa.bool_()
TIMESTAMP: Final = pa.timestamp("us", tz="UTC")
STRING_LIST: Final = pa.list_(STRING)
STRING_MAP: Final = pa.map_(STRING, STRING)


STATE_KEY: Final = "state"
"""Key in the footer of `verification_responses`; its value is a :class:`ResponsesState`."""


class ResponsesState(StrEnum):
    """Whether a day's `verification_responses` may still change under a running engine."""

    DISPATCHING = "dispatching"
    """Calls are being made, or the run that made them was killed: any submission may have been sent."""
    COMPLETE = "complete"
    """The outcomes are as the ledger knew them when the run ended."""


_VERIFICATION_ID = Column(
    "verification_id", INT64, "DeepXL's id of the verification.", made_from=("result.verificationId",)
)
_SUBMISSION_ID = Column("submission_id", STRING, "The submission's id, unique for ever.")
_ANSWERED_ID = replace(_SUBMISSION_ID, made_from=("verification_responses.submission_id",))
_CHECKS: Final = "result.modelResults.*", "result.technicalChecks"


def _checks(field: str) -> tuple[str, ...]:
    """The fields of a check, wherever the answer has its checks."""
    return tuple(f"{checks}[].{field}" for checks in _CHECKS)


SUBMISSIONS = Table(
    "submissions",
    Zone.RESTRICTED,
    "Submissions accepted from the manifests: what is to be verified, once each.",
    (
        _SUBMISSION_ID,
        Column("submitted_at", TIMESTAMP, "When the person submitted, from the manifest.", nullable=True),
        Column("id_file", STRING, "ID document, relative to the documents folder.", personal=True),
        Column("selfie_file", STRING, "Selfie, relative to the documents folder.", personal=True),
        Column("id_sha256", STRING, "SHA-256 (hex) of the ID document's bytes.", personal=True),
        Column("selfie_sha256", STRING, "SHA-256 (hex) of the selfie's bytes.", personal=True),
        Column("id_size", INT64, "Bytes of the ID document."),
        Column("selfie_size", INT64, "Bytes of the selfie."),
        Column("id_content_type", STRING, "Media type of the ID document, by content."),
        Column("selfie_content_type", STRING, "Media type of the selfie, by content."),
        Column("tags", STRING_MAP, "Tags to send, without `submissionId`.", personal=True),
        Column("content_sha256", STRING, "Identity of the content: both files and the tags.", personal=True),
        Column("manifest", STRING, "File name of the manifest."),
        Column("manifest_row", INT64, "Row in the manifest: 1 is the first row of data."),
    ),
)

REJECTED_SUBMISSIONS = Table(
    "rejected_submissions",
    Zone.RESTRICTED,
    "Manifest rows that cannot be submitted, each with one reason.",
    (
        Column(
            "submission_id",
            STRING,
            "The row's id as far as it could be read; NULL where the subject was erased.",
            nullable=True,
        ),
        Column("reason", STRING, "One of the documented reasons."),
        Column("detail", STRING, "What is wrong and what to do.", nullable=True, personal=True),
        Column("manifest", STRING, "File name of the manifest."),
        Column("manifest_row", INT64, "Row in the manifest: 1 is the first row of data."),
    ),
)

VERIFICATION_RESPONSES = Table(
    "verification_responses",
    Zone.RESTRICTED,
    "One row per accepted submission: its outcome and the answer as received, without geometry.",
    (
        replace(_SUBMISSION_ID, made_from=("submissions.submission_id",)),
        Column("outcome", STRING, "What became of the submission; exactly one of the documented outcomes."),
        Column("http_status", INT32, "Status of the last answer; NULL if none was received.", nullable=True),
        Column("attempts", INT32, "POST calls that were started for this submission, over all runs."),
        Column("requested_at", TIMESTAMP, "When the last call was started.", nullable=True),
        Column("responded_at", TIMESTAMP, "When its answer was complete.", nullable=True),
        Column("latency_ms", DOUBLE, "From start to complete answer, by a monotonic clock.", nullable=True),
        Column(
            "response",
            STRING,
            "The answer's JSON text, geometry removed.",
            nullable=True,
            personal=True,
            made_from=("result",),
        ),
        Column("error", STRING, "What went wrong, in one line.", nullable=True),
        Column("billable_calls", INT32, "Calls that were or may have been billed: 2xx and ambiguous ones."),
        Column(
            "content_sha256",
            STRING,
            "Identity of the content that was sent.",
            personal=True,
            made_from=("submissions.content_sha256",),
        ),
    ),
)

VERIFICATIONS = Table(
    "verifications",
    Zone.CURATED,
    "One row per completed verification.",
    (
        _VERIFICATION_ID,
        _ANSWERED_ID,
        Column("verified", BOOL, "DeepXL's decision.", made_from=("result.verified",)),
        Column("model", STRING, "Model as named in the answer.", nullable=True, made_from=("result.model",)),
        Column(
            "model_version",
            STRING,
            "Model version, where the answer has one.",
            nullable=True,
            made_from=("result.modelVersion",),
        ),
        Column(
            "verified_at",
            TIMESTAMP,
            "The answer's epoch time stamp.",
            nullable=True,
            made_from=("result.timestamp",),
        ),
        Column(
            "timestamp_iso",
            STRING,
            "ISO text as received; its zone is not known.",
            nullable=True,
            made_from=("result.timestampISO",),
        ),
        Column(
            "iso_offset_seconds",
            DOUBLE,
            "The ISO text read as UTC less the epoch: a data-quality figure.",
            nullable=True,
            made_from=("result.timestamp", "result.timestampISO"),
        ),
        Column(
            "id_file_type",
            STRING,
            "Type of the ID document, from the answer.",
            nullable=True,
            made_from=("result.idFileType",),
        ),
        Column(
            "id_file_size",
            INT64,
            "Bytes of the ID document, from the answer.",
            nullable=True,
            made_from=("result.idFileSize",),
        ),
        Column(
            "selfie_file_type",
            STRING,
            "Type of the selfie, from the answer.",
            nullable=True,
            made_from=("result.selfieFileType",),
        ),
        Column(
            "selfie_file_size",
            INT64,
            "Bytes of the selfie, from the answer.",
            nullable=True,
            made_from=("result.selfieFileSize",),
        ),
        Column("check_count", INT32, "Checks in the answer, over all groups.", made_from=_CHECKS),
        Column(
            "id_document_pseudonym",
            STRING,
            "HMAC of the ID document's content: equal for the same file, under one key.",
            nullable=True,
            made_from=("submissions.id_sha256",),
        ),
        Column(
            "anomalies",
            STRING_LIST,
            "What in this answer differs from the contract or from what was sent.",
            made_from=(
                "result",
                "submissions.id_size",
                "submissions.selfie_size",
                "submissions.submission_id",
                "submissions.tags",
            ),
        ),
    ),
)

MODEL_CHECKS = Table(
    "model_checks",
    Zone.CURATED,
    "One row per check under `modelResults`.",
    (
        _VERIFICATION_ID,
        _ANSWERED_ID,
        Column(
            "check_group", STRING, "Key under `modelResults`, such as `technicalChecks`.", made_from=_CHECKS
        ),
        Column("check_index", INT32, "Position in its group, from 0.", made_from=_CHECKS),
        Column(
            "type",
            STRING,
            "Which check, as received (`type`, else `checkType`).",
            nullable=True,
            made_from=_checks("type"),
        ),
        Column("status", STRING, "Status as received.", nullable=True, made_from=_checks("status")),
        Column(
            "normalized_status",
            STRING,
            "PASS, FAIL, REVIEW, NOT_EVALUATED, ERROR, PENDING or UNKNOWN.",
            made_from=_checks("status"),
        ),
        Column(
            "confidence",
            DOUBLE,
            "Confidence in [0, 1]; NULL when absent or outside.",
            nullable=True,
            made_from=_checks("confidence"),
        ),
        Column(
            "confidence_raw",
            STRING,
            "Confidence as received, as JSON text.",
            nullable=True,
            made_from=_checks("confidence"),
        ),
        Column(
            "details",
            STRING,
            "The vendor's free text about the check, as received. It may say anything, also of the person: "
            "it stays in the lake, and the warehouse has no such column.",
            nullable=True,
            made_from=_checks("details"),
        ),
    ),
)

VERIFICATION_TAGS = Table(
    "verification_tags",
    Zone.CURATED,
    "One row per tag of the answer; values only for the tags that analysts may see.",
    (
        _VERIFICATION_ID,
        _ANSWERED_ID,
        Column("name", STRING, "The tag's name.", made_from=("result.tags[].name",)),
        Column(
            "value",
            STRING,
            "Its value, only for `KYC_CLEAR_TAGS`.",
            nullable=True,
            made_from=("result.tags[].value",),
        ),
        Column(
            "pseudonym",
            STRING,
            "HMAC-SHA-256 of the value, separate for each name.",
            nullable=True,
            made_from=("result.tags[].value",),
        ),
    ),
)

VERIFICATION_FILES = Table(
    "verification_files",
    Zone.CURATED,
    "One row per file of the answer, without its name and URL.",
    (
        _VERIFICATION_ID,
        _ANSWERED_ID,
        Column(
            "category",
            STRING,
            "`id`, `face` or as received.",
            nullable=True,
            made_from=("result.files[].category",),
        ),
        Column(
            "content_type",
            STRING,
            "Media type as received.",
            nullable=True,
            made_from=("result.files[].contentType",),
        ),
        Column(
            "file_size", INT64, "Bytes as received.", nullable=True, made_from=("result.files[].fileSize",)
        ),
        Column(
            "uploaded_at",
            TIMESTAMP,
            "The file's epoch time stamp.",
            nullable=True,
            made_from=("result.files[].timestamp",),
        ),
    ),
)

CONTRACT_DRIFT = Table(
    "contract_drift",
    Zone.CURATED,
    "Where the day's answers differ from the contract, by path and kind.",
    (
        Column(
            "path",
            STRING,
            "Path in the answer; `[]` stands for any position of a list, `?` for a key that does not look "
            "like a name, since it may be data.",
            made_from=("result",),
        ),
        Column("kind", STRING, "How it differs.", made_from=("result",)),
        Column("occurrences", INT64, "How often.", made_from=("result",)),
        Column(
            "example_submission_id",
            STRING,
            "The first submission (by id) where it occurs.",
            made_from=("verification_responses.submission_id",),
        ),
    ),
)

TABLES: Final = (
    SUBMISSIONS,
    REJECTED_SUBMISSIONS,
    VERIFICATION_RESPONSES,
    VERIFICATIONS,
    MODEL_CHECKS,
    VERIFICATION_TAGS,
    VERIFICATION_FILES,
    CONTRACT_DRIFT,
)
