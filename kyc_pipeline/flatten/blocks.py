"""Many answers at a time: the fast path for answers without anything to report.

Arrow reads a block of answers with the contract's exact types. An answer is taken only if it fits the soft
contract in every field and echoes what was sent, so that it has no anomaly and no drift; every other
answer is left to the exact path (`records.py`), which decides what to say of it. Where in doubt, leave it.
"""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Annotated, Any, Final, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from kyc_pipeline.deepxl.contract import CHECK_TYPES, normalize_status
from kyc_pipeline.flatten.records import SUBMISSION_TAG, TECHNICAL_CHECKS
from kyc_pipeline.flatten.values import MICROSECONDS, iso_microseconds
from kyc_pipeline.lake.tables import MODEL_CHECKS, VERIFICATION_FILES, VERIFICATION_TAGS, VERIFICATIONS, Table
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.vocabulary import CheckStatus

_TEXT: Final = pa.string()
_WHOLE: Final = pa.int64()
_FRACTION: Final = pa.float64()


def _struct(**fields: pa.DataType) -> pa.StructType:
    return pa.struct(list(fields.items()))


_CHECK: Final = _struct(type=_TEXT, status=_TEXT, confidence=_FRACTION, details=_TEXT)
_TAG: Final = _struct(name=_TEXT, value=_TEXT)
_FILE: Final = _struct(
    category=_TEXT,
    fileName=_TEXT,
    fileSize=_WHOLE,
    contentType=_TEXT,
    timestamp=_FRACTION,
    timestampISO=_TEXT,
    url=_TEXT,
)
_RESULT: Final = _struct(
    verificationId=_WHOLE,
    idFileType=_TEXT,
    idFileName=_TEXT,
    idFileSize=_WHOLE,
    selfieFileType=_TEXT,
    selfieFileName=_TEXT,
    selfieFileSize=_WHOLE,
    model=_TEXT,
    modelVersion=_TEXT,
    verified=pa.bool_(),
    modelResults=_struct(technicalChecks=pa.list_(_CHECK)),
    timestamp=_FRACTION,
    timestampISO=_TEXT,
    tags=pa.list_(_TAG),
    files=pa.list_(_FILE),
)
_SCHEMA: Final = pa.schema([("result", _RESULT)])
_ANSWER: Final = pa.struct(list(_SCHEMA))
_SENT_TAGS: Final = pa.list_(_struct(key=_TEXT, value=_TEXT))
_OPTIONAL: Final = "modelVersion"
# With the first quote looked for last, the search is by a third faster: quotes are everywhere.
_CONFIDENCE: Final = re.compile(rb'confidence(?<="confidence)"[ \t\r]*:[ \t\r]*(-?[0-9][-+0-9.eE]*)')
_NULL: Final = re.compile(rb"null")
_LATE_COLON: Final = re.compile(rb'"[ \t\r]+:')
_LONGEST: Final = 1 << 16
"""Bytes of an answer: what is longer (a usual one has 1,500) is read alone, so that a block stays small."""
_SMALLEST: Final = 64
"""Answers of a block that Arrow refuses and that is not halved any more."""
_ISO: Final = (
    r"^(19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}[T ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?$"
)
_LATEST: Final = 4_000_000_000
"""Seconds below this (the year 2096), and their distance to the years of `_ISO`, are exact as a double of
microseconds."""

# The stubs of Arrow know neither nested columns nor kernels between a column and a scalar.
Column: TypeAlias = Any
"""An Arrow array or chunked array."""
Block: TypeAlias = Any
"""An Arrow table: one row an answer, a column for each field of the contract and for what was sent."""
Mask: TypeAlias = np.ndarray[tuple[int], np.dtype[np.bool_]]
Whole: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]


_SHAPES: Final = {
    _TEXT: str,
    _WHOLE: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    _FRACTION: float,
    pa.bool_(): bool,
}


def _shape(name: str, type_: pa.DataType) -> object:
    """The msgspec type that accepts what Arrow's `type_` accepts, unknown fields refused."""
    if pa.types.is_struct(type_):
        fields = [(f.name, _shape(f.name, f.type) | None, None) for f in type_]  # type: ignore[operator]
        return msgspec.defstruct(name or "Answer", fields, forbid_unknown_fields=True)
    if pa.types.is_list(type_):
        return list[_shape(name, type_.value_type)]  # type: ignore[misc]
    return _SHAPES[type_]


_SHAPE: Final = msgspec.json.Decoder(_shape("", _ANSWER))
_SCALARS: Final = [f.name for f in _RESULT if not pa.types.is_nested(f.type) and f.name != _OPTIONAL]


def select(ids: Column, texts: Column, sent: Block) -> Block:
    """The answers of a batch that need no exact reading; their place in the batch is `position`.

    `sent` has one row for each answer: `id_sha256`, `id_size`, `selfie_size` and `tags`, NULL where no
    submission has its id.
    """
    block = _read(ids, texts, sent)
    block = _where(block, _fits(block))
    block = _where(block, _echoes(block))
    try:
        moments = _moments(block)
    except pa.ArrowInvalid:  # an ISO text of the right form that is in no calendar
        is_moment = [iso_microseconds(text) is not None for text in block["timestampISO"].to_pylist()]
        block = block.filter(pa.array(is_moment, pa.bool_()))
        moments = _moments(block)
    return block.append_column("iso", moments)


def _where(rows: Block, mask: Mask) -> Block:
    """`rows.filter(mask)`, which copies them all, only where it changes something: it rarely does."""
    return rows if mask.all() else rows.filter(pa.array(mask))


def _moments(block: Block) -> Column:
    return block["timestampISO"].cast(pa.timestamp("us")).cast(_WHOLE)


class BlockFlattener:
    """Makes rows of blocks of selected answers."""

    def __init__(self, pseudonymizer: Pseudonymizer, clear_tags: Collection[str]) -> None:
        self._pseudonymizer = pseudonymizer
        self._clear_tags = frozenset(clear_tags)

    def flatten(self, block: Block) -> dict[Table, pa.Table]:
        """The rows of the fact tables, in the order of the answers of `block`, which `select` made."""
        return {
            VERIFICATIONS: self._verifications(block),
            MODEL_CHECKS: _model_checks(block),
            VERIFICATION_TAGS: self._verification_tags(block),
            VERIFICATION_FILES: _verification_files(block),
        }

    def _verifications(self, block: Block) -> pa.Table:
        verified_at = _microseconds(block["timestamp"])
        iso = block["iso"].to_numpy()
        return _table(
            VERIFICATIONS,
            verification_id=block["verificationId"],
            submission_id=block["submission_id"],
            verified=block["verified"],
            model=block["model"],
            model_version=block["modelVersion"],
            verified_at=pa.array(verified_at),
            timestamp_iso=block["timestampISO"],
            iso_offset_seconds=pa.array((iso - verified_at) / MICROSECONDS),
            id_file_type=block["idFileType"],
            id_file_size=block["idFileSize"],
            selfie_file_type=block["selfieFileType"],
            selfie_file_size=block["selfieFileSize"],
            check_count=pc.list_value_length(block[TECHNICAL_CHECKS]),
            id_document_pseudonym=self._pseudonymizer.documents(block["id_sha256"].combine_chunks()),
            anomalies=pa.array([[]] * block.num_rows, pa.list_(_TEXT)),
        )

    def _verification_tags(self, block: Block) -> pa.Table:
        rows, tags = _items(block, "tags")
        names, values = tags.field("name"), tags.field("value")
        is_clear = pc.is_in(names, value_set=pa.array(sorted(self._clear_tags), _TEXT))
        return _table(
            VERIFICATION_TAGS,
            **_keys(block, rows),
            name=names,
            value=pc.if_else(is_clear, values, pa.scalar(None, _TEXT)),
            pseudonym=self._pseudonymizer.tags(names, values),
        )


def _read(ids: Column, texts: Column, sent: Block) -> Block:
    """The answers that Arrow can read, a column for each field of the contract, beside what was sent.

    `is_known` says which have no other field.
    """
    answers = pa.table(
        {
            "position": pa.array(np.arange(len(texts))),
            "submission_id": ids,
            "text": texts,
            "id_sha256": sent["id_sha256"],
            "id_size": sent["id_size"],
            "selfie_size": sent["selfie_size"],
            "sent_tags": sent["tags"].cast(_SENT_TAGS),
        }
    )
    answers = _where(answers, _true(pc.less_equal(pc.binary_length(texts), pa.scalar(_LONGEST))))
    texts = answers["text"]
    if not pc.all(pc.ends_with(texts, "}")).as_py():  # many a server ends a body with a line break
        texts = pc.ascii_rtrim(texts, " \t\r\n")
    lines = pc.binary_join_element_wise(texts, pa.scalar(""), pa.scalar("\n"))
    answers = answers.drop_columns("text").append_column("line", lines)
    answers = _where(answers, _is_usable(answers["line"]))
    parsed = _parsed(answers)
    if parsed is None:
        has_shape = np.array([_has_shape(line) for line in answers["line"].to_pylist()], np.bool_)
        parsed = _parsed_by_halves(_where(answers, has_shape))
    return parsed.drop_columns("line")


def _buffer(lines: Column) -> tuple[Column, Whole]:
    """The buffer that holds all `lines`, and where each ends in it."""
    array = lines.combine_chunks()
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset :][: len(array) + 1].astype(np.int64)
    data = array.buffers()[2] or pa.py_buffer(b"")
    return data[offsets[0] : offsets[-1]], offsets[1:] - offsets[0]


def _is_usable(lines: Column) -> Mask:
    """Which are one document on one line, and without null, which Arrow does not tell from a missing field.

    One that is not closed would go on in the next line, but within a document no brace opens right after one
    that closes.
    """
    buffer, ends = _buffer(lines)
    data = np.frombuffer(buffer, np.uint8)
    starts = np.append(0, ends[:-1])[: len(ends)]
    usable: Mask = (data[starts] == ord("{")) & (data[ends - 2] == ord("}"))
    spoilt = [match.start() for match in _NULL.finditer(buffer)]
    is_break = data == ord("\n")
    if np.count_nonzero(is_break) > len(ends):
        spoilt += np.setdiff1d(np.flatnonzero(is_break), ends - 1).tolist()
    usable[_rows_of(spoilt, ends)] = False
    return usable


def _rows_of(places: Whole | list[int], ends: Whole) -> Whole:
    """The lines, which end at `ends`, that the bytes at `places` belong to."""
    rows: Whole = np.searchsorted(ends, places, side="right")
    return rows


def _has_shape(line: str) -> bool:
    try:
        _SHAPE.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _parsed(answers: Block) -> Block | None:
    """The `answers` with a column for each field of the contract, each check's confidence as it was written
    (`literals`), and `is_known`.

    None if one of them cannot be read with the contract's types.
    """
    lines = answers["line"]
    buffer, ends = _buffer(lines)
    try:
        result = _parse(buffer)
    except pa.ArrowInvalid:
        return None
    if len(result) != len(lines):
        return None
    # Without null, each key that is not unknown has a value: with `result` itself, one more.
    is_known = _key_counts(buffer, ends) == _value_counts(result) + 1
    columns = {f.name: result.field(f.name) for f in _RESULT}
    checks = columns.pop("modelResults").field(TECHNICAL_CHECKS)
    # Where no field is unknown, each confidence in the text is that of a check.
    literals = _CONFIDENCE.findall(_buffer(_where(lines, is_known))[0])
    scores = pc.is_valid(checks.flatten().field("confidence"))
    has_score = _true(scores) & np.repeat(is_known, _lengths(checks))
    if len(literals) != has_score.sum():
        return None
    given = iter(literals)
    literal_of_each = pa.array([next(given) if has else None for has in has_score.tolist()], _TEXT)
    # A list beside the checks, so that a filter keeps each literal with its check.
    offsets: Column = pa.array(np.append(0, np.cumsum(_lengths(checks))), pa.int32())
    columns |= {TECHNICAL_CHECKS: checks, "literals": pa.ListArray.from_arrays(offsets, literal_of_each)}
    for name, column in columns.items():
        answers = answers.append_column(name, column)
    return answers.append_column("is_known", pa.array(is_known))


def _parsed_by_halves(answers: Block) -> Block:
    """`_parsed`, and what Arrow still refuses, such as a repeated key, costs only the few around it."""
    parsed = _parsed(answers)
    if parsed is not None:
        return parsed
    if answers.num_rows <= _SMALLEST:
        return _parsed_by_halves(answers[:0])
    half = answers.num_rows // 2
    return pa.concat_tables([_parsed_by_halves(answers[:half]), _parsed_by_halves(answers[half:])])


def _parse(buffer: Column) -> Column:
    """The result of each line; an unknown field vanishes. Raises `pa.ArrowInvalid`."""
    if not buffer.size:
        return pa.array([], _RESULT)
    source: Any = pa.BufferReader(buffer)
    table = pj.read_json(
        source,
        read_options=pj.ReadOptions(use_threads=False, block_size=buffer.size + 1),
        parse_options=pj.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="ignore"),
    )
    return table["result"].combine_chunks()


def _key_counts(buffer: Column, ends: Whole) -> Whole:
    """How many keys each line has, or more where a text holds what looks like a key; -1 where a blank
    follows a key, which is not counted."""
    counts = np.zeros(len(ends), dtype=np.int64)
    for places in _places(buffer, b'":'):
        counts += np.diff(np.searchsorted(places, ends), prepend=0)
    for pair in (b'" ', b'"\t', b'"\r'):
        for places in _places(buffer, pair):
            late = [place for place in places.tolist() if _LATE_COLON.match(buffer, place)]
            counts[_rows_of(late, ends)] = -1
    return counts


def _places(buffer: Column, pair: bytes) -> Iterator[Whole]:
    """Where the two bytes of `pair` stand in `buffer`: at even places, then at odd ones."""
    data = np.frombuffer(buffer, np.uint8)
    for start in (0, 1):
        pairs = data[start : start + (len(data) - start) // 2 * 2].view(np.uint16)
        yield np.flatnonzero(pairs == np.frombuffer(pair, np.uint16)) * 2 + start


def _value_counts(array: Column) -> Whole:
    """How many members each of `array` has, at any depth."""
    if pa.types.is_list(array.type):
        sums = np.append(0, np.cumsum(_value_counts(array.flatten())))
        counts: Whole = np.diff(sums[np.append(0, np.cumsum(_lengths(array)))])
        return counts
    counts = np.zeros(len(array), dtype=np.int64)
    if pa.types.is_struct(array.type):
        for member in map(array.field, range(array.type.num_fields)):
            counts += _true(pc.is_valid(member)) if member.null_count else 1
            if pa.types.is_nested(member.type):
                counts += _value_counts(member)
    return counts


def _fits(block: Block) -> Mask:
    """Which answers fit the soft contract in every field and echo the sizes and the number of tags sent."""
    fits = np.array(block["is_known"])
    for name in _SCALARS:
        fits &= _is_filled(block[name])
    fits &= _true(pc.not_equal(block[_OPTIONAL], pa.scalar("")), absent=True)
    fits &= _in_range(block["timestamp"], _LATEST)
    fits &= _true(pc.match_substring_regex(block["timestampISO"], _ISO))
    fits &= _true(pc.equal(block["idFileSize"], block["id_size"]))
    fits &= _true(pc.equal(block["selfieFileSize"], block["selfie_size"]))
    fits &= _lengths(block["tags"]) == _lengths(block["sent_tags"]) + 1
    literals = pc.list_flatten(block["literals"])
    conditions: dict[str, Callable[[Column], Mask]] = {
        TECHNICAL_CHECKS: lambda checks: _is_known_check(checks, literals),
        "tags": lambda tags: np.ones(len(tags), dtype=np.bool_),
        "files": lambda files: _in_range(files.field("timestamp"), _LATEST),
    }
    for name, condition in conditions.items():
        parents, items = _items(block, name)
        good = condition(items)
        for field in items.type:
            good &= _is_filled(items.field(field.name))
        fits[parents[~good]] = False
        fits &= _lengths(block[name]) > 0
    return fits


def _is_known_check(checks: Column, literals: Column) -> Mask:
    statuses = checks.field("status").dictionary_encode()
    known = [
        normalize_status(status) is not CheckStatus.UNKNOWN for status in statuses.dictionary.to_pylist()
    ]
    scores = checks.field("confidence")
    return (
        _true(pc.is_in(checks.field("type"), value_set=pa.array(sorted(CHECK_TYPES), _TEXT)))
        & _true(pa.array(known, pa.bool_()).take(statuses.indices))
        & _in_range(scores, 1, closed=True)
        & _true(pc.equal(pc.cast(literals, _FRACTION), scores))
    )


def _echoes(block: Block) -> Mask:
    """Which answers have exactly the tags that were sent, with `submissionId`, in any order.

    Every answer must have one tag more than was sent, as `_fits` makes sure.
    """
    parents, tags = _items(block, "tags")
    sent = block["sent_tags"].combine_chunks().flatten()
    lengths = _lengths(block["sent_tags"])
    # The usual order: the tags as sent, then `submissionId`. `sources` says where each tag should come from.
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
        echoed = block["tags"][row].as_py()
        expected = {tag["key"]: tag["value"] for tag in block["sent_tags"][row].as_py()}
        expected[SUBMISSION_TAG] = block["submission_id"][row].as_py()
        echoes[row] = {tag["name"]: tag["value"] for tag in echoed} == expected
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
        category=files.field("category"),
        content_type=files.field("contentType"),
        file_size=files.field("fileSize"),
        uploaded_at=pa.array(_microseconds(files.field("timestamp"))),
    )


def _table(table: Table, **columns: Column) -> pa.Table:
    return pa.table([columns[name] for name in table.schema.names], names=table.schema.names).cast(
        table.schema
    )


def _items(block: Block, name: str) -> tuple[Whole, Column]:
    """The elements of the list column `name`: the row of each, and themselves."""
    return np.repeat(np.arange(block.num_rows), _lengths(block[name])), block[name].combine_chunks().flatten()


def _keys(block: Block, rows: Whole) -> dict[str, Column]:
    """The key columns of the elements that belong to `rows`."""
    places = pa.array(rows)
    return {
        "verification_id": block["verificationId"].take(places),
        "submission_id": block["submission_id"].take(places),
    }


def _lengths(lists: Column) -> Whole:
    lengths: Column = pc.list_value_length(lists)
    return np.asarray(pc.fill_null(lengths, 0))


def _is_filled(array: Column) -> Mask:
    """Which values are there, and no empty text."""
    if array.type == _TEXT:
        return _true(pc.greater(array, pa.scalar("")))
    return _true(pc.is_valid(array))


def _true(condition: Column, *, absent: bool = False) -> Mask:
    return np.asarray(pc.fill_null(condition, absent) if condition.null_count else condition)


def _in_range(numbers: Column, end: int, *, closed: bool = False) -> Mask:
    """From 0 up to `end`; NULL and NaN are not."""
    limit = pa.scalar(float(end))
    is_below = pc.less_equal(numbers, limit) if closed else pc.less(numbers, limit)
    return _true(pc.and_(pc.greater_equal(numbers, pa.scalar(0.0)), is_below))


def _microseconds(seconds: Column) -> Whole:
    rounded: Whole = np.rint(np.asarray(seconds) * MICROSECONDS).astype(np.int64)
    return rounded
