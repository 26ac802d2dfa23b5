"""Reads JSON Lines: one object per line, whose members are the columns."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
import pyarrow as pa

from kyc_pipeline.ingest.formats.columns import MALFORMED, Layout, count_ignored
from kyc_pipeline.ingest.formats.size_limits import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    MAX_CHUNK_CELLS,
    MAX_COLUMNS,
    MAX_ROW_BYTES,
)
from kyc_pipeline.ingest.formats.text import text_blocks
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable
from kyc_pipeline.landing.zone import ManifestFile

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str | None)
_NO_OBJECT: Final = "the line is not a valid JSON object"
_DUPLICATE_KEY: Final = "the line has a duplicate key"
_LINE_END: Final = re.compile(r"\n|\r(?=[^\r\n])")
"""The last character of a line end. It has no repetition: a million CRs would take hours."""
_LINE_ENDS: Final = re.compile(r"[\r\n]+")
_BETWEEN_ROWS: Final = re.compile(r"\}([ \t\r\n]+)\{")


def read_jsonl(path: ManifestFile, ignored: Counter[str], layout: Layout) -> Iterator[pa.Table]:
    """Yields the chunks of a JSON Lines file."""
    records: list[dict[str, str | None]] = []
    numbers: list[int] = []
    names: set[str] = set()
    size = 0
    is_lines = False
    first = ""
    for number, line in enumerate(_lines(path), 1):
        record = _record(line, ignored, layout)
        # Once a line was an object, the file is JSON Lines.
        is_lines = is_lines or record.get(MALFORMED) != _NO_OBJECT
        if not is_lines and _is_part_of_an_array(line, layout):
            raise ManifestUnreadable(
                path,
                f"is a JSON array (line {number}): write one object per line, without brackets and commas",
            )
        first = first or line
        records.append(record)
        numbers.append(number)
        names.update(record)
        size += len(line)
        is_full = len(records) == CHUNK_ROWS or size >= CHUNK_BYTES
        if is_full or len(records) * len(names) >= MAX_CHUNK_CELLS:
            yield _records_chunk(records, numbers, layout)
            records, numbers, names, size = [], [], set(), 0
    if first == "{" and not is_lines:
        raise ManifestUnreadable(path, "is a JSON object over several lines: write one object per line")
    if records:
        yield _records_chunk(records, numbers, layout)


def _lines(path: ManifestFile) -> Iterator[str]:
    rest = end = ""
    for block in text_blocks(path):
        text = rest + block
        if not end:
            end = _line_end(text)
        *lines, rest = text.split(end or "\n")
        if len(rest) > MAX_ROW_BYTES:
            raise ManifestUnreadable(path, f"has a line of more than {MAX_ROW_BYTES} characters")
        for line in lines:
            yield from _rows(line.strip())
    yield from _rows(rest.strip())


def _rows(line: str) -> list[str]:
    """The rows in a line: several if line ends of another kind separate objects in it, as in joined files."""
    if "\n" in line or "\r" in line:  # a regular expression takes as long as the row itself
        parts = [part for each in _LINE_ENDS.split(line) if (part := each.strip())]
        objects = (part for part in parts if part[0] == "{" and part[-1] == "}")
        if not _is_object(line) and any(map(_is_object, itertools.islice(objects, MAX_COLUMNS))):
            return parts
    return [line] if line else []


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, parse_int=str), dict)
    except (ValueError, RecursionError):
        return False


def _line_end(text: str) -> str:
    """What ends the lines of a text; empty if it has only one.

    The most frequent line end is the file's; strings may contain other line separators. Ends between two
    objects count if there are any, since one row may have more stray ends than the file has rows.
    """
    gaps = _BETWEEN_ROWS.findall(text)
    ends = ["\n" if "\n" in gap else "\r" for gap in gaps if "\n" in gap or "\r" in gap]
    found = Counter(ends or _LINE_END.findall(text))
    return max(found, key=found.__getitem__, default="")


def has_duplicate_key(text: str) -> bool:
    """Whether the JSON object `text` itself (not an object inside it) has a duplicate key."""
    # The hook sees the outermost object last, and its result for that object is the return value.
    # Numbers stay text, since Python refuses to read those of thousands of digits.
    return bool(
        json.loads(text, object_pairs_hook=lambda pairs: len(dict(pairs)) < len(pairs), parse_int=str)
    )


def _record(line: str, ignored: Counter[str], layout: Layout) -> dict[str, str | None]:
    try:
        values = _values(line, layout)
    except _DuplicateKey:
        return {MALFORMED: _DUPLICATE_KEY}
    except (ValueError, RecursionError):
        return {MALFORMED: _NO_OBJECT}
    if len(values) > MAX_COLUMNS:
        return {MALFORMED: f"the line has {len(values)} members, more than {MAX_COLUMNS}"}
    record: dict[str, str | None] = {}
    for key, value in values.items():
        name = layout.column_of(key)
        if not layout.is_used(name):
            count_ignored(ignored, name, 1)
            continue
        if name in record:
            return {MALFORMED: _DUPLICATE_KEY}
        try:
            record[name] = _TEXT.decode(value)
        except ValueError:
            if name in ("tags", layout.number):
                record[name] = value.decode()
            else:
                record[MALFORMED] = layout.must_be_text(name)
    return record


class _DuplicateKey(Exception):
    """A JSON object has a key twice."""


class _Pairs(list[tuple[str, object]]):
    """The members of a JSON object."""


def _values(line: str, layout: Layout) -> Mapping[str, bytes]:
    """The JSON text of each value of an object. Raises `_DuplicateKey`, ValueError or RecursionError.

    Other tools write NaN and lone surrogates, which are not valid JSON. Each value that is used is
    checked on its own, so that these do no harm in a column that is not.
    """
    try:
        values = {name: bytes(value) for name, value in _OBJECT.decode(line).items()}
    except msgspec.DecodeError:
        pairs = json.loads(line, object_pairs_hook=_Pairs)
        if not isinstance(pairs, _Pairs):
            raise
        if len(dict(pairs)) < len(pairs):
            raise _DuplicateKey from None
        return {_encodable(name, layout): _json_text(value).encode() for name, value in pairs}
    # The size of the compact JSON: if the line is just as long, it has no duplicate key.
    compact = 1 + sum(len(name.encode()) + len(value) + 4 for name, value in values.items())
    if compact != len(line.encode()) and has_duplicate_key(line):
        raise _DuplicateKey
    return values


def _encodable(name: str, layout: Layout) -> str:
    """The name of a value. Raises ValueError for one that is used and has a lone surrogate."""
    is_used = layout.is_used(layout.column_of(name))
    return name.encode(errors="strict" if is_used else "backslashreplace").decode()


def _json_text(value: object) -> str:
    if isinstance(value, _Pairs):
        return "{" + ",".join(f"{json.dumps(name)}:{_json_text(member)}" for name, member in value) + "}"
    return json.dumps(value)


def _is_part_of_an_array(line: str, layout: Layout) -> bool:
    """Whether a line that is no object is the start or an element of an array of objects."""
    if line.endswith(("[", "[{")) or (line.startswith("[") and line[1:].lstrip().startswith("{")):
        return True
    element = line.removesuffix(",")
    return element != line and _record(element, Counter(), layout).get(MALFORMED) != _NO_OBJECT


def _records_chunk(records: list[dict[str, str | None]], numbers: list[int], layout: Layout) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: pa.array([record.get(name) for record in records], pa.string()) for name in names}
    return layout.chunk_of(columns, pa.array(numbers, pa.int64()), columns.pop(MALFORMED, None))
