"""The rules of a manifest row, a chunk at a time: text in, typed candidates and rejected rows out.

The first rule of :func:`validate_rows` that a row breaks gives its reason. The rules that need other rows
(duplicates, conflicts) are in `ownership.py`.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.ingest.documents import Documents, Role
from kyc_pipeline.ingest.formats import (
    MALFORMED,
    REQUIRED,
    ROW,
    SUBMISSION_ID,
    TAG_PREFIX,
    Column,
    has_name_twice,
)
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.privacy.erased import DETAIL as ERASED_DETAIL
from kyc_pipeline.privacy.erased import ErasedSubjects
from kyc_pipeline.vocabulary import SUBMISSION_TAG, Reason

if TYPE_CHECKING:  # a code location loads without it: it takes a quarter of a second
    import pandas as pd

Tags = dict[str, str]
_ROLES: Final = {"id_file": Role.ID, "selfie_file": Role.SELFIE}
_MAX_SHOWN_ID: Final = 200
_ISO_8601: Final = r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?([Zz]|[+-]\d{2}(:?\d{2})?)"


CANDIDATES: Final = pa.schema(
    [
        *(pa.field(column.name, column.type) for column in SUBMISSIONS.columns),
        pa.field("problem", pa.string()),
        pa.field("problem_detail", pa.string()),
    ]
)
"""A `submissions` row whose documents may still have a problem; then hashes and the like are null."""
REJECTED: Final = REJECTED_SUBMISSIONS.schema


def validate_rows(
    chunk: pa.Table, manifest: str, documents: Documents, erased: ErasedSubjects | None
) -> tuple[pa.Table, pa.Table]:
    """Splits a chunk of `read_manifest` into candidates (:data:`CANDIDATES`) and rejected rows.

    Every row is in exactly one of the two.
    """
    import pandas as pd

    frame = chunk.to_pandas(types_mapper=pd.ArrowDtype)
    verdicts = _Verdicts(len(frame))
    ids = frame["submission_id"]

    if erased is not None:
        # First, since a row rejected for another reason keeps its id.
        for index, readings in enumerate(identities(chunk)):
            if any(erased(reading) for reading in readings):
                verdicts.reject_one(index, Reason.ERASED_SUBJECT, ERASED_DETAIL)
    verdicts.reject(frame[MALFORMED].notna(), Reason.MALFORMED_ROW, frame[MALFORMED])
    for name in REQUIRED:
        blank = frame[name].isna() | (frame[name].str.strip() == "").fillna(True)
        verdicts.reject(blank, Reason.MISSING_FIELD, f"{name} is empty")
    verdicts.reject(
        ~ids.str.fullmatch(SUBMISSION_ID.pattern).fillna(False),
        Reason.INVALID_SUBMISSION_ID,
        "submission_id must be 1 to 64 of A-Z a-z 0-9 . _ -",
    )
    tags = _read_tags(frame, verdicts)
    submitted_at = _read_times(frame["submitted_at"], verdicts)

    open_rows = verdicts.open_rows()
    candidates = frame.iloc[open_rows]
    columns: dict[str, Column] = {
        "submission_id": pa.array(candidates["submission_id"]),
        "submitted_at": pa.array(submitted_at.iloc[open_rows], pa.timestamp("us", "UTC"), from_pandas=True),
        "tags": _tag_maps([tags[index] for index in open_rows]),
        "manifest": pa.array([manifest] * len(open_rows), pa.string()),
        "manifest_row": pa.array(candidates[ROW]),
    }
    columns |= _examine(candidates, documents)
    columns["content_sha256"] = _content(columns, [tags[index] for index in open_rows])
    accepted = pa.table({field.name: columns[field.name].cast(field.type) for field in CANDIDATES})

    closed = verdicts.closed_rows()
    rejected: dict[str, list[str | None] | list[str] | list[int]] = {
        "submission_id": [
            None if verdicts.reasons[index] == Reason.ERASED_SUBJECT else _shown(ids.iloc[index])
            for index in closed
        ],
        "reason": [verdicts.reasons[index] for index in closed],
        "detail": [verdicts.details[index] for index in closed],
        "manifest": [manifest] * len(closed),
        "manifest_row": [int(row) for row in frame[ROW].iloc[closed]],
    }
    return accepted, pa.table(rejected, schema=REJECTED)


class _Verdicts:
    """The first reason given to each rejected row."""

    def __init__(self, rows: int) -> None:
        self.reasons: dict[int, str] = {}
        self.details: dict[int, str] = {}
        self._open = np.ones(rows, dtype=bool)

    def reject(self, broken: "pd.Series[bool]", reason: Reason, detail: "str | pd.Series[str]") -> None:
        for index in np.flatnonzero(broken.to_numpy(dtype=bool) & self._open).tolist():
            self.reject_one(index, reason, detail if isinstance(detail, str) else detail.iloc[index])

    def reject_one(self, index: int, reason: Reason, detail: str) -> None:
        self._open[index] = False
        self.reasons[index] = reason.value
        self.details[index] = detail

    def open_rows(self) -> list[int]:
        return np.flatnonzero(self._open).tolist()

    def closed_rows(self) -> list[int]:
        return np.flatnonzero(~self._open).tolist()


def _shown(value: object) -> str | None:
    return value[:_MAX_SHOWN_ID] if isinstance(value, str) and value.strip() else None


def _read_times(texts: "pd.Series[str]", verdicts: _Verdicts) -> "pd.Series[pd.Timestamp]":
    import pandas as pd

    given = texts.notna() & (texts.str.strip() != "").fillna(False)
    well_formed = given & texts.str.fullmatch(_ISO_8601).fillna(False)
    times = pd.to_datetime(texts.where(well_formed), utc=True, format="ISO8601", errors="coerce").dt.as_unit(
        "us"
    )
    verdicts.reject(
        given & times.isna(),
        Reason.INVALID_SUBMITTED_AT,
        "submitted_at must be ISO 8601 with an offset, such as 2024-09-01T10:00:00Z",
    )
    return times


# --- tags -------------------------------------------------------------------------------------------------


class _TagError(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


_TAGS: Final = msgspec.json.Decoder(Tags)
_ANY_TAGS: Final = msgspec.json.Decoder(dict[str, object])
_CANONICAL: Final = msgspec.json.Encoder(order="sorted")


def _read_tags(frame: "pd.DataFrame", verdicts: _Verdicts) -> dict[int, Tags]:
    """The tags of every row that is not rejected yet; rejects rows with wrong tags."""
    names = [name for name in frame.columns if name.startswith(TAG_PREFIX)]
    own_columns = [(name.removeprefix(TAG_PREFIX), pa.array(frame[name]).to_pylist()) for name in names]
    texts = pa.array(frame["tags"]).to_pylist()
    tags: dict[int, Tags] = {}
    for index in verdicts.open_rows():
        cells = [(name, values[index]) for name, values in own_columns if values[index]]
        try:
            tags[index] = _merge(texts[index], cells)
        except _TagError as error:
            verdicts.reject_one(index, error.reason, error.detail)
    return tags


def identities(chunk: pa.Table) -> Iterator[list[Tags]]:
    """Whom each row of a chunk is about: its tags, `submissionId` among them.

    A wrong row is read as far as possible; one whose tags contradict each other gives both readings.
    """
    names = [name for name in chunk.column_names if name.startswith(TAG_PREFIX)]
    own_columns = [(name.removeprefix(TAG_PREFIX), chunk[name].to_pylist()) for name in names]
    rows = zip(chunk["submission_id"].to_pylist(), chunk["tags"].to_pylist(), strict=True)
    for index, (submission_id, text) in enumerate(rows):
        own = {name: value for name, values in own_columns if (value := values[index])}
        given = _lenient_tags(text) if text else {}
        key = {SUBMISSION_TAG: submission_id} if submission_id else {}
        both = given | own | key
        yield [both] if both == own | given | key else [both, own | given | key]


def _lenient_tags(text: str) -> Tags:
    try:
        return {name: str(value) for name, value in _ANY_TAGS.decode(text).items()}
    except (ValueError, RecursionError):
        return {}


def _merge(text: str | None, cells: list[tuple[str, str]]) -> Tags:
    tags = parse_tags(text) if text and not text.isspace() else {}
    for name, value in cells:
        if tags.setdefault(name, value) != value:
            raise _TagError(Reason.INVALID_TAGS, "a tag has two different values")
    if "" in tags:
        raise _TagError(Reason.INVALID_TAGS, "a tag has no name")
    if SUBMISSION_TAG in tags:
        raise _TagError(Reason.RESERVED_TAG, f"the tag {SUBMISSION_TAG} is the pipeline's own: leave it out")
    return dict(sorted(tags.items()))


def parse_tags(text: str) -> Tags:
    """The tags of a JSON object of strings. Raises an error whose reason is `invalid_tags`."""
    try:
        tags = _TAGS.decode(text)
    except (ValueError, RecursionError):
        raise _TagError(Reason.INVALID_TAGS, "tags must be a JSON object of strings") from None
    # Each name and each value has two quotes: more may mean that a name occurs twice.
    if text.count('"') != 4 * len(tags) and has_name_twice(text):
        raise _TagError(Reason.INVALID_TAGS, "a tag's name comes twice")
    return tags


def _tag_maps(tags: list[Tags]) -> Column:
    """The rows' tags as one Arrow map column."""
    offsets = pa.array(itertools.accumulate(map(len, tags), initial=0), pa.int32())
    names = pa.array([name for own in tags for name in own], pa.string())
    values = pa.array([value for own in tags for value in own.values()], pa.string())
    return pa.MapArray.from_arrays(cast("pa.Int64Array", offsets), names, values)


# --- documents --------------------------------------------------------------------------------------------


def _examine(rows: "pd.DataFrame", documents: Documents) -> dict[str, Column]:
    """What is known of both documents of each row, and the first problem with one of them."""
    files = {name: pa.array(rows[name]).cast(pa.string()).dictionary_encode() for name in _ROLES}
    found = documents.examine(path for column in files.values() for path in column.dictionary.to_pylist())
    columns: dict[str, Column] = {}
    problems, details = [], []
    for (name, role), column in zip(_ROLES.items(), files.values(), strict=True):
        side = name.removesuffix("_file")
        own = [found[path] for path in column.dictionary.to_pylist()]
        own_problems = [document.problem_as(role, name) or (None, None) for document in own]

        def spread(
            values: Iterable[str | int | None], kind: pa.DataType, where: Column = column.indices
        ) -> Column:
            return pa.array(list(values), kind).take(where)

        columns[name] = column.dictionary_decode()
        columns[f"{side}_sha256"] = spread((document.sha256 for document in own), pa.string())
        columns[f"{side}_size"] = spread((document.size for document in own), pa.int64())
        columns[f"{side}_content_type"] = spread((document.content_type for document in own), pa.string())
        problems.append(spread((reason for reason, _ in own_problems), pa.string()))
        details.append(spread((detail for _, detail in own_problems), pa.string()))
    return {**columns, "problem": pc.coalesce(*problems), "problem_detail": pc.coalesce(*details)}


def _content(columns: Mapping[str, Column], tags: list[Tags]) -> Column:
    """Identity of the content: SHA-256 over canonical JSON of both files' hashes and the sorted tags."""
    rows = zip(
        columns["problem"].to_pylist(),
        columns["id_sha256"].to_pylist(),
        columns["selfie_sha256"].to_pylist(),
        tags,
        strict=True,
    )
    return pa.array(
        [
            None if problem else hashlib.sha256(_CANONICAL.encode([id_sha, selfie_sha, own])).hexdigest()
            for problem, id_sha, selfie_sha, own in rows
        ],
        pa.string(),
    )
