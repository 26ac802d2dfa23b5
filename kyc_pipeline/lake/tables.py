"""The data dictionary: the only definition of the lake's tables and the warehouse's facts.

Arrow schemas, Dagster's column metadata, DuckDB's comments, checks and `docs/data-dictionary.md` are derived
from it. The partition date is in the folder name `date=<D>`, never a column of the file. Labels come for
submissions of any day, so their tables have no partitions.
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

    `personal` marks values that identify a person or lead to one; they must not leave `restricted`.
    `made_from` is the lineage: fields of the response (`[]` is any list position, `*` any other key) and
    columns of other lake tables (`table.column`).
    """

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False
    personal: bool = False
    made_from: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the lake: one Parquet file per day in `<zone>/<name>/date=<D>/`, or one for all."""

    name: str
    zone: Zone
    description: str
    columns: tuple[Column, ...]
    is_daily: bool = True
    """Whether it has daily partitions; if not, it is one file, `<zone>/<name>/part-0.parquet`."""

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


CHANGED_KEY: Final = "changed"
"""Key in the footer of `submissions`: how many of them stay as they were sent although their row was changed.

Their rows are rejected, so they are in both tables. Absent if there are none."""


class ResponsesState(StrEnum):
    """Whether a run may still change a day's `verification_responses`."""

    DISPATCHING = "dispatching"
    """Calls are being made, or the run that made them was killed: any submission may have been sent."""
    COMPLETE = "complete"
    """The run has ended and written the outcomes that the ledger had then."""


_VERIFICATION_ID = Column(
    "verification_id", INT64, "DeepXL's verification id.", made_from=("result.verificationId",)
)
_SUBMISSION_ID = Column("submission_id", STRING, "Submission id, unique forever.")
_RESPONSE_ID = replace(_SUBMISSION_ID, made_from=("verification_responses.submission_id",))
_CHECKS: Final = "result.modelResults.*", "result.technicalChecks"


def _checks(field: str) -> tuple[str, ...]:
    """The paths of a field of the checks, one for each place where a response has checks."""
    return tuple(f"{checks}[].{field}" for checks in _CHECKS)


def _optional(name: str, kind: pa.DataType, description: str, *made_from: str) -> Column:
    """A nullable column that is made from these fields."""
    return Column(name, kind, description, nullable=True, made_from=made_from)


SUBMISSIONS = Table(
    "submissions",
    Zone.RESTRICTED,
    "Submissions accepted from the manifests. Each is verified once.",
    (
        _SUBMISSION_ID,
        Column(
            "submitted_at",
            TIMESTAMP,
            "Time of the submission, from the manifest (UTC); NULL if it has none.",
            nullable=True,
        ),
        Column("id_file", STRING, "Path of the ID document in the documents folder.", personal=True),
        Column("selfie_file", STRING, "Path of the selfie in the documents folder.", personal=True),
        Column("id_sha256", STRING, "SHA-256 (hex) of the ID document's bytes.", personal=True),
        Column("selfie_sha256", STRING, "SHA-256 (hex) of the selfie's bytes.", personal=True),
        Column("id_size", INT64, "Size of the ID document in bytes."),
        Column("selfie_size", INT64, "Size of the selfie in bytes."),
        Column("id_content_type", STRING, "Media type of the ID document, detected from its content."),
        Column("selfie_content_type", STRING, "Media type of the selfie, detected from its content."),
        Column("tags", STRING_MAP, "Tags, except `submissionId`.", personal=True),
        Column("content_sha256", STRING, "SHA-256 (hex) of both file hashes and the tags.", personal=True),
        Column("manifest", STRING, "File name of the manifest."),
        Column("manifest_row", INT64, "Row number in the manifest; 1 is the first data row."),
        Column(
            "consent",
            STRING,
            "Consent, or another lawful basis, as in the manifest; NULL if it has none.",
            nullable=True,
            personal=True,
        ),
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
            "Submission id as far as it could be read; NULL if the row has none, or once the subject was "
            "erased or KYC_RETAIN_REJECTED_DAYS have passed.",
            nullable=True,
        ),
        Column("reason", STRING, "Why the row was rejected: one of the documented reasons."),
        Column("detail", STRING, "What is wrong and how to fix it.", nullable=True, personal=True),
        Column("manifest", STRING, "File name of the manifest."),
        Column("manifest_row", INT64, "Row number in the manifest; 1 is the first data row."),
    ),
)

VERIFICATION_RESPONSES = Table(
    "verification_responses",
    Zone.RESTRICTED,
    "One row per accepted submission: its outcome and the response as received, without geometry.",
    (
        replace(_SUBMISSION_ID, made_from=("submissions.submission_id",)),
        Column("outcome", STRING, "The submission's outcome: exactly one of the documented ones."),
        Column(
            "http_status", INT32, "HTTP status of the last response; NULL if there was none.", nullable=True
        ),
        Column(
            "attempts",
            INT32,
            "Calls for this submission, over all runs: requests of which at least a byte may have left.",
        ),
        Column("requested_at", TIMESTAMP, "When the last call started, or was about to.", nullable=True),
        Column("responded_at", TIMESTAMP, "When its response was complete.", nullable=True),
        Column(
            "latency_ms",
            DOUBLE,
            "Milliseconds from the start of the last call to its complete response, on a monotonic clock.",
            nullable=True,
        ),
        Column(
            "response",
            STRING,
            "JSON text of the response, without geometry.",
            nullable=True,
            personal=True,
            made_from=("result",),
        ),
        Column("error", STRING, "What went wrong, in one line.", nullable=True),
        Column("billable_calls", INT32, "Calls that were or may have been billed: 2xx and ambiguous ones."),
        Column(
            "content_sha256",
            STRING,
            "`content_sha256` of the submission as it was sent.",
            personal=True,
            made_from=("submissions.content_sha256",),
        ),
        Column(
            "sent",
            STRING,
            "JSON of what was sent if it is less than the submission: `tags`, the names of those sent; `id` "
            "and `selfie`, SHA-256 (hex) and size in bytes of a document without its metadata. NULL: "
            "everything, unchanged.",
            nullable=True,
            personal=True,
            made_from=("submissions.id_sha256", "submissions.selfie_sha256", "submissions.tags"),
        ),
    ),
)

VERIFICATIONS = Table(
    "verifications",
    Zone.CURATED,
    "One row per completed verification.",
    (
        _VERIFICATION_ID,
        _RESPONSE_ID,
        Column("verified", BOOL, "DeepXL's decision.", made_from=("result.verified",)),
        _optional(
            "model", STRING, "Model name from the response; OTHER if it is not a known one.", "result.model"
        ),
        _optional(
            "model_version",
            STRING,
            "Model version, if the response has one; OTHER if it is no version.",
            "result.modelVersion",
        ),
        _optional("verified_at", TIMESTAMP, "Epoch timestamp from the response (UTC).", "result.timestamp"),
        _optional(
            "timestamp_iso",
            STRING,
            "ISO timestamp as received, whose time zone is unknown; OTHER if it is no timestamp.",
            "result.timestampISO",
        ),
        _optional(
            "iso_offset_seconds",
            DOUBLE,
            "`timestamp_iso`, read as UTC, minus `verified_at`, in seconds: a data-quality figure.",
            "result.timestamp",
            "result.timestampISO",
        ),
        _optional(
            "id_file_type",
            STRING,
            "File type of the ID document, from the response; OTHER if it is not a known one.",
            "result.idFileType",
        ),
        _optional(
            "id_file_size", INT64, "Size of the ID document in bytes, from the response.", "result.idFileSize"
        ),
        _optional(
            "selfie_file_type",
            STRING,
            "File type of the selfie, from the response; OTHER if it is not a known one.",
            "result.selfieFileType",
        ),
        _optional(
            "selfie_file_size",
            INT64,
            "Size of the selfie in bytes, from the response.",
            "result.selfieFileSize",
        ),
        Column("check_count", INT32, "Number of checks in the response, over all groups.", made_from=_CHECKS),
        _optional(
            "id_document_pseudonym",
            STRING,
            "HMAC of the ID document's content: equal for equal files, under one key.",
            "submissions.id_sha256",
        ),
        Column(
            "anomalies",
            STRING_LIST,
            "Codes of the response's differences from the contract and from what was sent.",
            made_from=(
                "result",
                "submissions.id_size",
                "submissions.selfie_size",
                "submissions.submission_id",
                "submissions.tags",
                "verification_responses.sent",
            ),
        ),
    ),
)

MODEL_CHECKS = Table(
    "model_checks",
    Zone.CURATED,
    "One row per check of a response.",
    (
        _VERIFICATION_ID,
        _RESPONSE_ID,
        Column(
            "check_group",
            STRING,
            "Key under `modelResults`: `technicalChecks`, or OTHER for any other; `result.technicalChecks` "
            "for a list outside that differs.",
            made_from=_CHECKS,
        ),
        Column("check_index", INT32, "Position in the group, from 0.", made_from=_CHECKS),
        _optional(
            "type",
            STRING,
            "Check type as received (`type`, else `checkType`); OTHER if it is unknown, NULL if absent.",
            *_checks("type"),
        ),
        _optional(
            "status",
            STRING,
            "Status as received; OTHER if it is not in the status table.",
            *_checks("status"),
        ),
        Column(
            "normalized_status",
            STRING,
            "PASS, FAIL, REVIEW, NOT_EVALUATED, ERROR, PENDING or UNKNOWN.",
            made_from=_checks("status"),
        ),
        _optional(
            "confidence",
            DOUBLE,
            "Confidence in [0, 1]; NULL if absent or out of range.",
            *_checks("confidence"),
        ),
        _optional(
            "confidence_raw",
            STRING,
            "JSON text of the confidence as received if it is a number or null; else OTHER.",
            *_checks("confidence"),
        ),
        _optional(
            "details",
            STRING,
            "The vendor's free text about the check, as received. It may mention the person, so it stays in "
            "the lake: the warehouse has no such column.",
            *_checks("details"),
        ),
    ),
)

VERIFICATION_TAGS = Table(
    "verification_tags",
    Zone.CURATED,
    "One row per tag of a response, and per tag of its submission that was not sent; only tags that analysts "
    "may see have a value.",
    (
        _VERIFICATION_ID,
        _RESPONSE_ID,
        Column(
            "name",
            STRING,
            "Tag name; OTHER if the submission does not have it.",
            made_from=("result.tags[].name", "submissions.tags"),
        ),
        _optional(
            "value",
            STRING,
            "Tag value, only for names in `KYC_CLEAR_TAGS`; otherwise NULL.",
            "result.tags[].value",
            "submissions.tags",
        ),
        _optional(
            "pseudonym",
            STRING,
            "HMAC-SHA-256 of the value; each tag name has pseudonyms of its own.",
            "result.tags[].value",
            "submissions.tags",
        ),
    ),
)

VERIFICATION_FILES = Table(
    "verification_files",
    Zone.CURATED,
    "One row per file of a response, without file name and URL.",
    (
        _VERIFICATION_ID,
        _RESPONSE_ID,
        _optional(
            "category",
            STRING,
            "As received, such as `id` or `face`; OTHER if it is not a known word.",
            "result.files[].category",
        ),
        _optional(
            "content_type",
            STRING,
            "Media type as received; OTHER if it is not a known one.",
            "result.files[].contentType",
        ),
        _optional("file_size", INT64, "Size in bytes, as received.", "result.files[].fileSize"),
        _optional(
            "uploaded_at",
            TIMESTAMP,
            "Epoch timestamp of the file, as received (UTC).",
            "result.files[].timestamp",
        ),
    ),
)

CONTRACT_DRIFT = Table(
    "contract_drift",
    Zone.CURATED,
    "How the day's responses differ from the contract, by path and kind.",
    (
        Column(
            "path",
            STRING,
            "Path in the response; `[]` is any list position, `?` a key that may be data, since it does not "
            "look like a field name.",
            made_from=("result",),
        ),
        Column(
            "kind",
            STRING,
            "Kind of difference, such as unknown_field, unknown_type or unknown_status.",
            made_from=("result",),
        ),
        Column("occurrences", INT64, "Number of occurrences on the day.", made_from=("result",)),
        Column(
            "example_submission_id",
            STRING,
            "First submission, by id, in which it occurs; empty if that one was erased.",
            made_from=("verification_responses.submission_id",),
        ),
    ),
)

LABELS = Table(
    "labels",
    Zone.RESTRICTED,
    "What was found out about submissions afterwards: the accepted rows of the manifests in `labels/`.",
    (
        _SUBMISSION_ID,
        Column("label", STRING, "genuine, fraud or unsure."),
        Column("source", STRING, "What decided, such as `manual-review` or `chargeback`."),
        Column("decided_at", TIMESTAMP, "When it was decided (UTC)."),
        _optional("attack", STRING, "For a fraud: presentation, document or other; NULL if it is not known."),
        _optional(
            "weight",
            DOUBLE,
            "Of a drawn sample: how many submissions this one stands for. NULL: it was not drawn.",
        ),
        _optional("stratum", STRING, "Of a drawn sample: the stratum that it was drawn from."),
        Column("manifest", STRING, "File name of the manifest."),
        Column("manifest_row", INT64, "Row number in the manifest; 1 is the first data row."),
    ),
    is_daily=False,
)

REJECTED_LABELS = Table(
    "rejected_labels",
    Zone.RESTRICTED,
    "Rejected rows of the manifests in `labels/`, each with one reason. It holds no ids.",
    (
        Column("reason", STRING, "Why the row was rejected: one of the documented reasons."),
        Column("detail", STRING, "What is wrong and how to fix it."),
        Column("manifest", STRING, "File name of the manifest."),
        Column("manifest_row", INT64, "Row number in the manifest; 0 if the file cannot be read."),
        _optional("first_manifest", STRING, "Of a duplicate label: the manifest with the label that counts."),
        _optional("first_row", INT64, "Of a duplicate label: that label's row number."),
    ),
    is_daily=False,
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
"""The tables with daily partitions."""
CURATED_TABLES: Final = tuple(table for table in TABLES if table.zone is Zone.CURATED)
LABEL_TABLES: Final = (LABELS, REJECTED_LABELS)
ALL_TABLES: Final = (*TABLES, *LABEL_TABLES)
