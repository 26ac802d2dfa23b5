"""The fast path: many responses at a time, if they have no anomaly and no drift.

msgspec checks each response's types against the contract, then Arrow reads the whole block into columns. The
fast path takes a response only if it meets the soft contract in every field and echoes what was sent. The
others take the exact path (`records.py`), which decides what to report. For figures see
`docs/decisions/0007-the-fast-path-of-flatten.md`.
"""

import re
from collections.abc import Callable, Collection
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from kyc_pipeline.deepxl.contract import CHECK_TYPES, Envelope, JsonType, Result, kind_of, normalize_status
from kyc_pipeline.deepxl.echo import Echo, echo_mismatches
from kyc_pipeline.flatten.values import CODE, MAX_LITERAL, MICROSECONDS, direct_columns, iso_microseconds
from kyc_pipeline.lake.tables import (
    MODEL_CHECKS,
    TIMESTAMP,
    VERIFICATION_FILES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
    Table,
)
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.vocabulary import SUBMISSION_TAG, TECHNICAL_CHECKS, CheckStatus

# Arrow's type stubs lack nested columns and kernels between a column and a scalar.
ArrowColumn: TypeAlias = Any
"""An Arrow array or chunked array."""
Block: TypeAlias = Any
"""An Arrow table: one row per response, with columns for the contract's fields and for what was sent."""
Mask: TypeAlias = np.ndarray[tuple[int], np.dtype[np.bool_]]
Whole: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]

_TEXT: Final = pa.string()
_ARROW_TYPES: Final[dict[JsonType, pa.DataType]] = {
    JsonType.STRING: _TEXT,
    JsonType.INTEGER: pa.int64(),
    JsonType.NUMBER: pa.float64(),
    JsonType.BOOLEAN: pa.bool_(),
}


def _arrow_type(annotation: Any) -> pa.DataType:
    """The Arrow type of an annotation of the contract's `Result`."""
    kind, inner = kind_of(annotation)
    if kind is JsonType.LIST:
        return pa.list_(_arrow_type(inner))
    if kind is JsonType.OBJECT:
        members = msgspec.structs.fields(inner)
        return pa.struct([(member.encode_name, _arrow_type(member.type)) for member in members])
    return _ARROW_TYPES[kind]


_RESULT: Final[Any] = _arrow_type(Result)
_SCHEMA: Final = pa.schema([("result", _RESULT)])
_ENVELOPE: Final = msgspec.json.Decoder(Envelope)
_SENT_TAGS: Final = pa.list_(pa.struct([("key", _TEXT), ("value", _TEXT)]))
WITHHELD: Final = "withheld_tags"
"""Column of the submission's tags that were not sent."""
_OPTIONAL: Final = "modelVersion"
_SCALARS: Final = [f.name for f in _RESULT if not pa.types.is_nested(f.type) and f.name != _OPTIONAL]
_CONFIDENCE: Final = re.compile(rb'"confidence"[ \t\r]*:[ \t\r]*(-?[0-9][-+0-9.eE]*)')
_CODES: Final = ("idFileType", "selfieFileType", "model")
_LONGEST: Final = 1 << 16
"""Maximum bytes of a response (usual: 1,500). Longer ones take the exact path, to keep blocks small."""
_SMALLEST: Final = 64
"""A block that Arrow refuses is not halved below this many responses."""
_LATEST: Final = 4_000_000_000
"""Seconds below this (the year 2096) are exact as microseconds in a double."""
_EXACT_OFFSET: Final = 2**53
"""Microseconds below this are exact in a double."""


def select(ids: ArrowColumn, texts: ArrowColumn, sent: Block) -> Block:
    """The responses of a batch that the fast path takes; `position` is their place in the batch.

    `sent` has one row per response: `id_sha256`, `id_size`, `selfie_size` and `tags` as sent, and
    `withheld_tags`. All are NULL if no submission has the response's id.
    """
    block = _read(ids, texts, sent)
    block = block.filter(pa.array(_fits(block)))
    offsets = _iso_offsets(block)
    is_exact = _true(pc.less(pc.abs(offsets), pa.scalar(_EXACT_OFFSET)))
    return block.append_column("iso_offset", offsets).filter(pa.array(_echoes(block) & is_exact))


class BlockFlattener:
    """Turns blocks of selected responses into rows."""

    def __init__(self, pseudonymizer: Pseudonymizer, clear_tags: Collection[str]) -> None:
        self._pseudonymizer = pseudonymizer
        self._clear_tags = frozenset(clear_tags)

    def flatten(self, block: Block) -> dict[Table, pa.Table]:
        """The rows of the fact tables, in the order of the responses in `block` (from `select`)."""
        return {
            VERIFICATIONS: self._verifications(block),
            MODEL_CHECKS: _model_checks(block),
            VERIFICATION_TAGS: self._verification_tags(block),
            VERIFICATION_FILES: _verification_files(block),
        }

    def _verifications(self, block: Block) -> pa.Table:
        return _table(
            VERIFICATIONS,
            **_direct(VERIFICATIONS, "result", block.column),
            submission_id=block["submission_id"],
            iso_offset_seconds=pa.array(block["iso_offset"].to_numpy() / MICROSECONDS),
            check_count=pc.list_value_length(block[TECHNICAL_CHECKS]),
            id_document_pseudonym=self._pseudonymizer.documents(block["id_sha256"].combine_chunks()),
            anomalies=pa.array([[]] * block.num_rows, pa.list_(_TEXT)),
        )

    def _verification_tags(self, block: Block) -> pa.Table:
        rows, tags = _items(block, "tags")
        names, values = tags.field("name"), tags.field("value")
        withheld_rows, withheld = _items(block, WITHHELD)
        if len(withheld):
            rows = np.concatenate([rows, withheld_rows])
            order = np.argsort(rows, kind="stable")
            rows = rows[order]
            names = pa.concat_arrays([names, withheld.field("key")]).take(pa.array(order))
            values = pa.concat_arrays([values, withheld.field("value")]).take(pa.array(order))
        is_clear = pc.is_in(names, value_set=pa.array(sorted(self._clear_tags), _TEXT))
        return _table(
            VERIFICATION_TAGS,
            **_keys(block, rows),
            name=names,
            value=pc.if_else(is_clear, values, pa.scalar(None, _TEXT)),
            pseudonym=self._pseudonymizer.tags(names, values),
        )


def _read(ids: ArrowColumn, texts: ArrowColumn, sent: Block) -> Block:
    """The responses with the contract's types: a column per field, beside what was sent."""
    lines = [text.strip() if text else b"" for text in texts.cast(pa.binary()).to_pylist()]
    places = [place for place, line in enumerate(lines) if _has_shape(line)]
    position = pa.array(places, pa.int64())
    return _parsed(
        pa.table(
            {
                "position": position,
                "submission_id": ids.take(position),
                "id_sha256": sent["id_sha256"].take(position),
                "id_size": sent["id_size"].take(position),
                "selfie_size": sent["selfie_size"].take(position),
                "sent_tags": sent["tags"].take(position).cast(_SENT_TAGS),
                WITHHELD: sent[WITHHELD].take(position).cast(_SENT_TAGS),
            }
        ),
        [lines[place] for place in places],
    )


def _has_shape(line: bytes) -> bool:
    """Whether `line` is one response with all fields, each of its type, and no unknown ones."""
    if len(line) > _LONGEST or b"\n" in line:
        return False
    try:
        result = _ENVELOPE.decode(line).result
    except (msgspec.DecodeError, RecursionError):
        return False
    return all(check.confidence is not msgspec.UNSET for check in result.model_results.technical_checks)


def _parsed(sent: Block, lines: list[bytes]) -> Block:
    """`sent` with a column per field of the responses `lines`, and with `literals`: confidences as text.

    Arrow refuses a block with a repeated key. Such a block is read by halves, so that only a few responses
    around the repeated key are left to the exact path.
    """
    columns = _columns(lines)
    if columns is None and len(lines) > _SMALLEST:
        half = len(lines) // 2
        return pa.concat_tables([_parsed(sent[:half], lines[:half]), _parsed(sent[half:], lines[half:])])
    if columns is None:
        return _parsed(sent[:0], [])
    for name, column in columns.items():
        sent = sent.append_column(name, column)
    return sent


def _columns(lines: list[bytes]) -> dict[str, ArrowColumn] | None:
    """The fields of the responses, and `literals`; None if Arrow refuses a response."""
    text = b"\n".join(lines)
    try:
        results = _parse(text)
    except pa.ArrowInvalid:
        return None
    columns = {field.name: results.field(field.name) for field in _RESULT}
    checks = columns.pop("modelResults").field(TECHNICAL_CHECKS)
    literals = _CONFIDENCE.findall(text)
    if len(results) != len(lines) or len(literals) != len(checks.flatten()):
        return None
    # A list column parallel to the checks, so that a filter keeps each literal with its check.
    offsets: ArrowColumn = pa.array(np.append(0, np.cumsum(_lengths(checks))), pa.int32())
    columns["literals"] = pa.ListArray.from_arrays(offsets, pa.array(literals, _TEXT))
    return columns | {TECHNICAL_CHECKS: checks}


def _parse(text: bytes) -> ArrowColumn:
    """The result of each line. Raises `pa.ArrowInvalid`."""
    if not text:
        return pa.array([], _RESULT)
    source: Any = pa.BufferReader(text)
    table = pj.read_json(
        source,
        read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
        parse_options=pj.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="error"),
    )
    return table["result"].combine_chunks()


def _fits(block: Block) -> Mask:
    """Which responses meet the soft contract in every field and echo the sizes and number of tags sent."""
    fits = np.ones(block.num_rows, dtype=np.bool_)
    for name in _SCALARS:
        fits &= _is_filled(block[name])
    for name in _CODES:
        fits &= _is_code(block[name])
    fits &= _true(pc.match_substring_regex(block[_OPTIONAL], CODE), absent=True)
    fits &= _in_range(block["timestamp"], _LATEST)
    fits &= _true(pc.equal(block["idFileSize"], block["id_size"]))
    fits &= _true(pc.equal(block["selfieFileSize"], block["selfie_size"]))
    fits &= _lengths(block["tags"]) == _lengths(block["sent_tags"]) + 1
    literals = pc.list_flatten(block["literals"])
    conditions: dict[str, Callable[[ArrowColumn], Mask]] = {
        TECHNICAL_CHECKS: lambda checks: _is_known_check(checks, literals),
        "tags": lambda tags: np.ones(len(tags), dtype=np.bool_),
        "files": lambda files: (
            _in_range(files.field("timestamp"), _LATEST)
            & _is_code(files.field("category"))
            & _is_code(files.field("contentType"))
        ),
    }
    for name, condition in conditions.items():
        parents, items = _items(block, name)
        good = condition(items)
        for field in items.type:
            good &= _is_filled(items.field(field.name))
        fits[parents[~good]] = False
        fits &= _lengths(block[name]) > 0
    return fits


def _iso_offsets(block: Block) -> ArrowColumn:
    """Microseconds from the epoch timestamp to the ISO text, read as UTC; NULL if unreadable."""
    moments = pa.array([iso_microseconds(text) for text in block["timestampISO"].to_pylist()], pa.int64())
    return pc.subtract(moments, pa.array(_microseconds(block["timestamp"])))


def _is_known_check(checks: ArrowColumn, literals: ArrowColumn) -> Mask:
    statuses = checks.field("status").dictionary_encode()
    known = [
        normalize_status(status) is not CheckStatus.UNKNOWN for status in statuses.dictionary.to_pylist()
    ]
    scores = checks.field("confidence")
    return (
        _true(pc.less_equal(pc.utf8_length(literals), pa.scalar(MAX_LITERAL)))
        & _true(pc.is_in(checks.field("type"), value_set=pa.array(sorted(CHECK_TYPES), _TEXT)))
        & _true(pa.array(known, pa.bool_()).take(statuses.indices))
        & _in_range(scores, 1, closed=True)
        & _true(pc.equal(pc.cast(literals, pa.float64()), scores))
    )


def _echoes(block: Block) -> Mask:
    """Which responses have exactly the tags sent plus `submissionId`, in any order.

    Every response must have one tag more than was sent, as `_fits` ensures.
    """
    parents, tags = _items(block, "tags")
    sent = block["sent_tags"].combine_chunks().flatten()
    lengths = _lengths(block["sent_tags"])
    # The usual order is the tags as sent, then `submissionId`. `sources` are the indices of these tags.
    ends = np.cumsum(lengths + 1) - 1
    sources = np.full(len(parents), -1)
    sources[ends] = len(sent) + np.arange(block.num_rows)
    sources[sources < 0] = np.arange(len(sent))
    own = pa.array([SUBMISSION_TAG] * block.num_rows, _TEXT)
    names = pa.concat_arrays([sent.field("key"), own]).take(pa.array(sources))
    values = pa.concat_arrays([sent.field("value"), block["submission_id"].combine_chunks()]).take(
        pa.array(sources)
    )
    same = _true(pc.and_(pc.equal(tags.field("name"), names), pc.equal(tags.field("value"), values)))
    echoes = np.ones(block.num_rows, dtype=np.bool_)
    for row in np.unique(parents[~same]):
        echo = Echo(None, None, [(tag["name"], tag["value"]) for tag in block["tags"][row].as_py()])
        expected = {tag["key"]: tag["value"] for tag in block["sent_tags"][row].as_py()}
        expected[SUBMISSION_TAG] = block["submission_id"][row].as_py()
        echoes[row] = not any(echo_mismatches(echo, id_size=0, selfie_size=0, tags=expected))
    return echoes


def _model_checks(block: Block) -> pa.Table:
    rows, checks = _items(block, TECHNICAL_CHECKS)
    starts = np.concatenate([[0], np.cumsum(_lengths(block[TECHNICAL_CHECKS]))[:-1]])
    statuses = checks.field("status").dictionary_encode()
    normalized = pa.array(
        [normalize_status(status).value for status in statuses.dictionary.to_pylist()], _TEXT
    )
    return _table(
        MODEL_CHECKS,
        **_keys(block, rows),
        check_group=pa.array([TECHNICAL_CHECKS] * len(checks), _TEXT),
        check_index=pa.array(np.arange(len(checks)) - starts[rows]),
        type=checks.field("type"),
        status=checks.field("status"),
        normalized_status=normalized.take(statuses.indices),
        confidence=checks.field("confidence"),
        confidence_raw=pc.list_flatten(block["literals"]),
        details=checks.field("details"),
    )


def _verification_files(block: Block) -> pa.Table:
    rows, files = _items(block, "files")
    return _table(
        VERIFICATION_FILES,
        **_keys(block, rows),
        **_direct(VERIFICATION_FILES, "result.files[]", files.field),
    )


def _direct(table: Table, parent: str, column: Callable[[str], ArrowColumn]) -> dict[str, ArrowColumn]:
    """The direct columns of `table`; `column` returns a field by its name."""
    fields = {name: column(field.names[0]) for name, field in direct_columns(table, parent).items()}
    return {
        name: pa.array(_microseconds(field)) if table.column(name).type == TIMESTAMP else field
        for name, field in fields.items()
    }


def _table(table: Table, **columns: ArrowColumn) -> pa.Table:
    return pa.table([columns[name] for name in table.schema.names], names=table.schema.names).cast(
        table.schema
    )


def _items(block: Block, name: str) -> tuple[Whole, ArrowColumn]:
    """The elements of the list column `name`, after the row of each."""
    return np.repeat(np.arange(block.num_rows), _lengths(block[name])), block[name].combine_chunks().flatten()


def _keys(block: Block, rows: Whole) -> dict[str, ArrowColumn]:
    """The key columns for elements of `rows`."""
    places = pa.array(rows)
    return {
        "verification_id": block["verificationId"].take(places),
        "submission_id": block["submission_id"].take(places),
    }


def _lengths(lists: ArrowColumn) -> Whole:
    lengths: ArrowColumn = pc.list_value_length(lists)
    return np.asarray(pc.fill_null(lengths, 0))


def _is_filled(array: ArrowColumn) -> Mask:
    """Which values are neither NULL nor an empty text."""
    if array.type == _TEXT:
        return _true(pc.greater(array, pa.scalar("")))
    return _true(pc.is_valid(array))


def _is_code(texts: ArrowColumn) -> Mask:
    return _true(pc.match_substring_regex(texts, CODE))


def _true(condition: ArrowColumn, *, absent: bool = False) -> Mask:
    return np.asarray(pc.fill_null(condition, absent) if condition.null_count else condition)


def _in_range(numbers: ArrowColumn, end: int, *, closed: bool = False) -> Mask:
    """Which numbers are from 0 to `end`; NULL and NaN are not."""
    limit = pa.scalar(float(end))
    is_below = pc.less_equal(numbers, limit) if closed else pc.less(numbers, limit)
    return _true(pc.and_(pc.greater_equal(numbers, pa.scalar(0.0)), is_below))


def _microseconds(seconds: ArrowColumn) -> Whole:
    rounded: Whole = np.rint(np.asarray(seconds) * MICROSECONDS).astype(np.int64)
    return rounded
