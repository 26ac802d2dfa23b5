"""Typed values of a Parquet file as text: one rule for ids, paths and tags, and one for times.

Only a value with one obvious text has one. Numbers have none: an id that was stored as a number has lost its
leading zeros. README's table says the same for users.
"""

import itertools
import json
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

ArrowColumn: TypeAlias = "pa.Array[Any]"

_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")
_PER_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_NO_TIME: Final = "not a time in the years 1 to 9999"


def has_texts(kind: pa.DataType) -> bool:
    """Whether values of this type can have a text."""
    return _reader(kind) is not None


def texts(array: ArrowColumn) -> ArrowColumn:
    """The text of each value. Null if there is no value, or if the value has no text."""
    reader = _reader(array.type)
    return reader(array) if reader else pa.nulls(len(array), pa.string())


def has_numbers(kind: pa.DataType) -> bool:
    """Whether values of this type are numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def numbers(array: ArrowColumn) -> ArrowColumn:
    """The text of each number, for a field that is one; NaN is no value, as in pandas."""
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
    return array.cast(pa.string())


def tags_json(array: ArrowColumn) -> ArrowColumn:
    """JSON objects of a map or struct column.

    A value without a text stays something other than a string in the JSON, so that its row is rejected. So
    does a null in a map. A struct has every field in every row: there a null means that the tag is absent.
    """
    rows = _map_members(array) if pa.types.is_map(array.type) else _struct_members(array)
    return pa.array(
        [
            "{" + ",".join(f"{name}:{value}" for name, value in members) + "}" if valid else None
            for valid, members in zip(array.is_valid().to_pylist(), rows, strict=True)
        ],
        pa.string(),
    )


def times(array: ArrowColumn) -> ArrowColumn:
    """The ISO 8601 text of timestamps, to the microsecond.

    Without a time zone the text has no offset, and the row is rejected as in any other format.
    """
    kind = array.type
    epoch = datetime(1970, 1, 1, tzinfo=UTC if kind.tz else None)
    per_second = _PER_SECOND[kind.unit]

    def text(value: int | None) -> str | None:
        if value is None:
            return None
        try:
            seconds, parts = divmod(value, per_second)
            fraction = timedelta(microseconds=parts * 10**6 // per_second)
            return (epoch + timedelta(seconds=seconds) + fraction).isoformat()
        except OverflowError:
            return _NO_TIME

    return pa.array([text(value) for value in array.view(pa.int64()).to_pylist()], pa.string())


def _reader(kind: pa.DataType) -> Callable[[ArrowColumn], ArrowColumn] | None:
    if pa.types.is_dictionary(kind):
        return _decoded if has_texts(kind.value_type) else None
    if isinstance(kind, pa.BaseExtensionType):
        return _EXTENSIONS.get(kind.extension_name)
    return next((reader for is_kind, reader in _READERS if is_kind(kind)), None)


def _decoded(array: Any) -> ArrowColumn:
    return texts(array.dictionary_decode())


def _as_string(array: ArrowColumn) -> ArrowColumn:
    # Arrow does not check strings as it reads them: an older writer may have put Latin-1 into them.
    return _from_utf8(array.cast(pa.string()).view(pa.binary()))


def _from_bytes(array: ArrowColumn) -> ArrowColumn:
    values = array.cast(pa.large_binary())
    has_nul = pc.match_substring(values, "\0")
    return _from_utf8(pc.if_else(has_nul, pa.scalar(None, values.type), values))


def _from_utf8(array: ArrowColumn) -> ArrowColumn:
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([_utf8(value) for value in array.to_pylist()], pa.string())


def _utf8(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _from_dates(array: ArrowColumn) -> ArrowColumn:
    found = array.cast(pa.date32()).cast(pa.string()).to_pylist()
    return pa.array([text if text and _DATE.fullmatch(text) else None for text in found], pa.string())


def _from_uuids(array: Any) -> ArrowColumn:
    found = array.storage.to_pylist()
    return pa.array([None if value is None else str(uuid.UUID(bytes=value)) for value in found], pa.string())


def _from_storage(array: Any) -> ArrowColumn:
    return texts(array.storage)


_READERS: Final[list[tuple[Callable[[pa.DataType], bool], Callable[[ArrowColumn], ArrowColumn]]]] = [
    (pa.types.is_string, _as_string),
    (pa.types.is_large_string, _as_string),
    (pa.types.is_string_view, _as_string),
    (pa.types.is_null, _as_string),
    (pa.types.is_binary, _from_bytes),
    (pa.types.is_large_binary, _from_bytes),
    (pa.types.is_binary_view, _from_bytes),
    (pa.types.is_date, _from_dates),
]
_EXTENSIONS: Final = {"arrow.json": _from_storage, "arrow.uuid": _from_uuids}


def _map_members(array: Any) -> Iterator[list[tuple[str, str]]]:
    offsets = array.offsets.to_pylist()
    first, size = offsets[0], offsets[-1] - offsets[0]  # of a slice, keys and items are those of all rows
    names, values = _json_values(array.keys.slice(first, size)), _json_values(array.items.slice(first, size))
    for start, stop in itertools.pairwise(offset - first for offset in offsets):
        yield list(zip(names[start:stop], values[start:stop], strict=True))


def _struct_members(array: Any) -> Iterator[list[tuple[str, str]]]:
    columns = array.flatten()
    names = [json.dumps(field.name) for field in array.type]
    values = [_json_values(column) for column in columns]
    valid = [column.is_valid().to_pylist() for column in columns]
    for row in range(len(array)):
        yield [(names[i], values[i][row]) for i in range(len(names)) if valid[i][row]]


def _json_values(array: ArrowColumn) -> list[str]:
    """JSON text of each value: a string if the value has a text, else a number or null."""
    if pa.types.is_integer(array.type) or pa.types.is_decimal(array.type):
        # As in a JSON manifest: the row is rejected, and its person can still be recognised for an erasure.
        return [value or "null" for value in array.cast(pa.string()).to_pylist()]
    return [json.dumps(value, ensure_ascii=False) for value in texts(array).to_pylist()]


def without_text(array: ArrowColumn, found: ArrowColumn) -> ArrowColumn:
    """Which values of `array` have no text, given the result of `texts`."""
    return pc.and_(array.is_valid(), found.is_null())
