"""Validates manifest rows in chunks: text in, typed candidates and rejected rows out.

The first rule that a row breaks gives the reason for its rejection. Rules that compare rows (duplicates,
conflicts) are in `ownership.py`.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.ingest.documents import Documents, Role
from kyc_pipeline.ingest.formats.columns import (
    ABSENT_ID,
    MALFORMED,
    ROW,
    SUBMISSION_ID,
    SUBMISSION_ID_RULE,
    SUBMISSION_ROWS,
    TAG_PREFIX,
)
from kyc_pipeline.ingest.formats.jsonl import has_duplicate_key
from kyc_pipeline.ingest.formats.typed_values import ArrowColumn
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.privacy.erased import DETAIL as ERASED_DETAIL
from kyc_pipeline.privacy.erased import ErasedSubjects
from kyc_pipeline.vocabulary import SUBMISSION_TAG, Reason

if TYPE_CHECKING:  # imported where it is used: importing it takes a quarter of a second
    import pandas as pd

Tags = dict[str, str]
_ROLES: Final = {"id_file": Role.ID, "selfie_file": Role.SELFIE}
_MAX_SHOWN_ID: Final = 200
_ISO_8601: Final = r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?(Z|[+-]\d{2}(:?\d{2})?)"


CANDIDATES: Final = pa.schema(
    [
        *(pa.field(column.name, column.type) for column in SUBMISSIONS.columns),
        pa.field("problem", pa.string()),
        pa.field("problem_detail", pa.string()),
    ]
)
"""A `submissions` row and the problem with its documents, if any; then columns about them may be null."""
REJECTED: Final = REJECTED_SUBMISSIONS.schema


def validate_rows(
    chunk: pa.Table,
    manifest: str,
    documents: Documents,
    erased: ErasedSubjects | None,
    consents: Collection[str] = (),
) -> tuple[pa.Table, pa.Table]:
    """Splits a chunk of `read_manifest` into candidates (:data:`CANDIDATES`) and rejected rows.

    Every row is in exactly one of them. If there are `consents`, each candidate has one of them.
    """
    import pandas as pd

    frame = chunk.to_pandas(types_mapper=pd.ArrowDtype)
    rejections = Rejections(len(frame))
    ids = frame["submission_id"]

    if erased is not None:
        # First, since a row that is rejected for another reason keeps its id.
        for index, readings in enumerate(identities(chunk)):
            if any(erased(reading) for reading in readings):
                rejections.reject_one(index, Reason.ERASED_SUBJECT, ERASED_DETAIL)
    rejections.reject(frame[MALFORMED].notna(), Reason.MALFORMED_ROW, frame[MALFORMED])
    for name in SUBMISSION_ROWS.required:
        blank = frame[name].isna() | (frame[name].str.strip() == "").fillna(True)
        rejections.reject(blank, Reason.MISSING_FIELD, f"{name} is empty")
    rejections.reject(
        ~ids.str.fullmatch(SUBMISSION_ID.pattern).fillna(False),
        Reason.INVALID_SUBMISSION_ID,
        SUBMISSION_ID_RULE,
    )
    rejections.reject(
        ids.str.fullmatch(ABSENT_ID.pattern).fillna(False),
        Reason.INVALID_SUBMISSION_ID,
        "submission_id stands for an absent value, such as NULL or NaN",
    )
    if consents:
        given = frame["consent"].str.strip().str.casefold()
        lacks = ~given.isin({each.casefold() for each in consents}).fillna(False)
        rejections.reject(lacks, Reason.MISSING_CONSENT, "consent must be one of KYC_REQUIRE_CONSENT")
    tags = _read_tags(chunk, rejections)
    submitted_at = read_times(frame["submitted_at"], Reason.INVALID_SUBMITTED_AT, rejections)

    passed = rejections.passed()
    candidates = frame.iloc[passed]
    columns: dict[str, ArrowColumn] = {
        "submission_id": pa.array(candidates["submission_id"]),
        "submitted_at": pa.array(submitted_at.iloc[passed], pa.timestamp("us", "UTC"), from_pandas=True),
        "tags": _tag_maps([tags[index] for index in passed]),
        "manifest": pa.array([manifest] * len(passed), pa.string()),
        "manifest_row": pa.array(candidates[ROW]),
        "consent": pa.array(candidates["consent"]),
    }
    columns |= _document_columns(candidates, documents)
    columns["content_sha256"] = _content_hashes(columns, [tags[index] for index in passed])
    accepted = pa.table({field.name: columns[field.name].cast(field.type) for field in CANDIDATES})
    if erased is not None:
        theirs = _has_erased_document(accepted, erased)
        for index in itertools.compress(passed, theirs):
            rejections.reject_one(index, Reason.ERASED_SUBJECT, ERASED_DETAIL)
        accepted = accepted.filter(pa.array([not each for each in theirs], pa.bool_()))

    failed = rejections.failed()
    rejected: dict[str, list[str | None] | list[str] | list[int]] = {
        "submission_id": [
            None if rejections.reasons[index] == Reason.ERASED_SUBJECT else _shown_id(ids.iloc[index])
            for index in failed
        ],
        "reason": [rejections.reasons[index] for index in failed],
        "detail": [rejections.details[index] for index in failed],
        "manifest": [manifest] * len(failed),
        "manifest_row": [int(row) for row in frame[ROW].iloc[failed]],
    }
    return accepted, pa.table(rejected, schema=REJECTED)


class Rejections:
    """Which rows passed so far, and the first reason against each of the others."""

    def __init__(self, rows: int) -> None:
        self.reasons: dict[int, str] = {}
        self.details: dict[int, str] = {}
        self._passed = np.ones(rows, dtype=bool)

    def reject(self, mask: "pd.Series[bool]", reason: StrEnum, detail: "str | pd.Series[str]") -> None:
        for index in np.flatnonzero(mask.to_numpy(dtype=bool) & self._passed).tolist():
            self.reject_one(index, reason, detail if isinstance(detail, str) else detail.iloc[index])

    def reject_one(self, index: int, reason: StrEnum, detail: str) -> None:
        self._passed[index] = False
        self.reasons[index] = reason.value
        self.details[index] = detail

    def passed(self) -> list[int]:
        return np.flatnonzero(self._passed).tolist()

    def failed(self) -> list[int]:
        return np.flatnonzero(~self._passed).tolist()


def _shown_id(value: object) -> str | None:
    return value[:_MAX_SHOWN_ID] if isinstance(value, str) and value.strip() else None


def read_times(texts: "pd.Series[str]", reason: StrEnum, rejections: Rejections) -> "pd.Series[pd.Timestamp]":
    """The times (UTC, to the microsecond) of a field, whose name is that of `texts`. Rejects invalid ones."""
    import pandas as pd

    given = texts.notna() & (texts.str.strip() != "").fillna(False)
    well_formed = given & texts.str.fullmatch(_ISO_8601).fillna(False)
    # pandas reads all values in the finest unit of one of them, and nanoseconds end in the year 2262.
    in_microseconds = texts.where(well_formed).str.replace(r"[.,](\d{1,6})\d*", r".\1", regex=True)
    times = pd.to_datetime(in_microseconds, utc=True, format="ISO8601", errors="coerce").dt.as_unit("us")
    # An offset can move a time to a year that Python does not have.
    times = times.where(times.dt.year.between(1, 9999))
    rejections.reject(
        given & times.isna(),
        reason,
        f"{texts.name} must be ISO 8601 with an offset, such as 2024-09-01T10:00:00Z",
    )
    return times


# --- tags -------------------------------------------------------------------------------------------------


class _TagError(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


_EXCEL_TEXT: Final = '="'
"""How a CSV keeps Excel from reading text as a number; as a tag's value, it would be another person's."""
_TAGS: Final = msgspec.json.Decoder(Tags)
_ANY_TAGS: Final = msgspec.json.Decoder(dict[str, object])
_CANONICAL: Final = msgspec.json.Encoder(order="sorted")


def _tag_columns(chunk: pa.Table) -> list[tuple[str, list[str | None]]]:
    """Name and values of each `tag.<name>` column."""
    names = [name for name in chunk.column_names if name.startswith(TAG_PREFIX)]
    return [(name.removeprefix(TAG_PREFIX), chunk[name].to_pylist()) for name in names]


def _read_tags(chunk: pa.Table, rejections: Rejections) -> dict[int, Tags]:
    """The tags of each row that has passed so far, by index; rejects rows with invalid tags."""
    tag_columns = _tag_columns(chunk)
    texts = chunk["tags"].to_pylist()
    tags: dict[int, Tags] = {}
    for index in rejections.passed():
        cells = [(name, value) for name, values in tag_columns if (value := values[index])]
        try:
            tags[index] = _merge(texts[index], cells)
        except _TagError as error:
            rejections.reject_one(index, error.reason, error.detail)
    return tags


def identities(chunk: pa.Table) -> Iterator[list[Tags]]:
    """Yields the tags of each row, including `submissionId`: they identify the person.

    An invalid row is read as far as possible. A row whose tags contradict each other gives both readings.
    """
    tag_columns = _tag_columns(chunk)
    rows = zip(chunk["submission_id"].to_pylist(), chunk["tags"].to_pylist(), strict=True)
    for index, (submission_id, text) in enumerate(rows):
        cells = {name: value for name, values in tag_columns if (value := values[index])}
        tags = _lenient_tags(text) if text else {}
        key = {SUBMISSION_TAG: submission_id} if submission_id else {}
        first, second = tags | cells | key, cells | tags | key
        yield [first] if first == second else [first, second]


def _lenient_tags(text: str) -> Tags:
    try:
        return {name: str(value) for name, value in _ANY_TAGS.decode(text).items()}
    except (ValueError, RecursionError):
        return {}


def _merge(text: str | None, cells: list[tuple[str, str]]) -> Tags:
    tags = _parse_tags(text) if text and not text.isspace() else {}
    for name, value in cells:
        if tags.setdefault(name, value) != value:
            raise _TagError(Reason.INVALID_TAGS, "a tag has two different values")
    if "" in tags:
        raise _TagError(Reason.INVALID_TAGS, "a tag has no name")
    if any("\0" in name or "\0" in value for name, value in tags.items()):
        raise _TagError(Reason.INVALID_TAGS, "a tag has a NUL character")
    for name, value in tags.items():
        if value.startswith(_EXCEL_TEXT):
            raise _TagError(
                Reason.INVALID_TAGS, f'the tag {name} has a formula, such as ="0012": deliver its text'
            )
    if SUBMISSION_TAG in tags:
        raise _TagError(Reason.RESERVED_TAG, f"the tag {SUBMISSION_TAG} is the pipeline's own: leave it out")
    return dict(sorted(tags.items()))


def _parse_tags(text: str) -> Tags:
    try:
        tags = _TAGS.decode(text)
    except (ValueError, RecursionError):
        raise _TagError(Reason.INVALID_TAGS, "tags must be a JSON object of strings") from None
    # Each name and each value has two quotes: any more may belong to a duplicate name.
    if text.count('"') != 4 * len(tags) and has_duplicate_key(text):
        raise _TagError(Reason.INVALID_TAGS, "a tag name occurs twice")
    return tags


def _tag_maps(tags: list[Tags]) -> ArrowColumn:
    """The rows' tags as one Arrow map column."""
    offsets = pa.array(itertools.accumulate(map(len, tags), initial=0), pa.int32())
    names = pa.array([name for row in tags for name in row], pa.string())
    values = pa.array([value for row in tags for value in row.values()], pa.string())
    return pa.MapArray.from_arrays(cast("pa.Int64Array", offsets), names, values)


# --- documents --------------------------------------------------------------------------------------------


def _document_columns(rows: "pd.DataFrame", documents: Documents) -> dict[str, ArrowColumn]:
    """Examines both documents of each row; columns of the results and the first problem."""
    files = {name: pa.array(rows[name]).cast(pa.string()).dictionary_encode() for name in _ROLES}
    results = documents.examine(path for column in files.values() for path in column.dictionary.to_pylist())
    columns: dict[str, ArrowColumn] = {}
    problems, details = [], []
    for (name, role), column in zip(_ROLES.items(), files.values(), strict=True):
        side = name.removesuffix("_file")
        distinct = [results[path] for path in column.dictionary.to_pylist()]
        found = [documents.problem_as(role, name, document) or (None, None) for document in distinct]

        def per_row(
            values: Iterable[str | int | None], kind: pa.DataType, indices: ArrowColumn = column.indices
        ) -> ArrowColumn:
            return pa.array(list(values), kind).take(indices)

        columns[name] = column.dictionary_decode()
        columns[f"{side}_sha256"] = per_row((document.sha256 for document in distinct), pa.string())
        columns[f"{side}_size"] = per_row((document.size for document in distinct), pa.int64())
        columns[f"{side}_content_type"] = per_row(
            (document.content_type for document in distinct), pa.string()
        )
        problems.append(per_row((reason for reason, _ in found), pa.string()))
        details.append(per_row((detail for _, detail in found), pa.string()))
    return {**columns, "problem": pc.coalesce(*problems), "problem_detail": pc.coalesce(*details)}


def _has_erased_document(rows: pa.Table, erased: ErasedSubjects) -> list[bool]:
    """Of each row, whether one of its documents is an erased person's."""
    pairs = zip(rows["id_sha256"].to_pylist(), rows["selfie_sha256"].to_pylist(), strict=True)
    return [any(map(erased.has_document, pair)) for pair in pairs]


def _content_hashes(columns: Mapping[str, ArrowColumn], tags: list[Tags]) -> ArrowColumn:
    """SHA-256 over canonical JSON of both files' hashes and the sorted tags; null if there is a problem."""
    rows = zip(
        columns["problem"].to_pylist(),
        columns["id_sha256"].to_pylist(),
        columns["selfie_sha256"].to_pylist(),
        tags,
        strict=True,
    )
    return pa.array(
        [
            None if problem else hashlib.sha256(_CANONICAL.encode([id_sha, selfie_sha, row_tags])).hexdigest()
            for problem, id_sha, selfie_sha, row_tags in rows
        ],
        pa.string(),
    )
