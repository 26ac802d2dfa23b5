"""Parses manifest files: CSV, JSON Lines or Parquet in, rows of text out.

This module handles only the file format (encoding, separators, JSON, Parquet); `rows.py` validates the rows.
A file that cannot be read raises :class:`ManifestUnreadable`. A row that cannot be split into fields is
marked as *malformed* and does not stop the others.
"""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from kyc_pipeline.errors import KycError

FIELDS: Final = ("submission_id", "id_file", "selfie_file", "tags", "submitted_at")
REQUIRED: Final = FIELDS[:3]
TAG_PREFIX: Final = "tag."
ROW: Final = "manifest_row"
MALFORMED: Final = "malformed"
SUBMISSION_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

Column: TypeAlias = "pa.Array[Any]"
Reader: TypeAlias = Callable[[Path, Counter[str]], Iterator[pa.Table]]

CHUNK_ROWS: Final = 16_384
CHUNK_BYTES: Final = 1 << 22
BLOCK_BYTES: Final = 1 << 20
"""Bytes per read. Arrow reads up to 32 blocks ahead of the rows that it returns."""
MAX_ROW_BYTES: Final = BLOCK_BYTES
"""Longest row; a longer one suggests that a quote or a line end is missing."""
MAX_IGNORED_NAMES: Final = 100
MAX_SHOWN_COLUMNS: Final = 20
_COLUMN_NAME: Final = re.compile(r"(tag\.)?[A-Za-z_][A-Za-z_ -]{0,39}")
_SEPARATORS: Final = (",", ";", "\t", "|")


class ManifestUnreadable(KycError):
    """A manifest file that cannot be read at all."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{shown_path(path)}: {reason}")


def printable(name: str) -> str:
    """A file name that is safe in one line of text and in UTF-8."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown_path(path: Path) -> str:
    """A manifest's path for messages: `manifests/<date>/<name>`."""
    return f"manifests/{printable(path.parent.name)}/{printable(path.name)}"


def read_manifest(path: Path, ignored: Counter[str]) -> Iterator[pa.Table]:
    """Yields the rows of a manifest as text, in chunks: memory does not grow with the file.

    Each chunk has the columns `manifest_row` (int64; 1 is the first data row), `malformed` (why the row could
    not be parsed, or null), all :data:`FIELDS` and the file's `tag.<name>` columns. An absent value is null.
    `ignored` counts the rows of each unused column.
    Raises :class:`ManifestUnreadable`.
    """
    reader = reader_of(path)
    if reader is None:
        raise ManifestUnreadable(path, "is neither .csv, .tsv, .jsonl nor .parquet")
    with fails_alone(path), _explained(path):
        yield from reader(path, ignored)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestUnreadable(path, f"is a damaged .gz file ({error})") from error
    except UnicodeDecodeError as error:
        raise ManifestUnreadable(path, f"is not {error.encoding} text: save it as UTF-8") from error
    except OSError as error:
        raise ManifestUnreadable(path, f"cannot be read ({type(error).__name__})") from error


@contextlib.contextmanager
def fails_alone(path: Path) -> Iterator[None]:
    """Names the manifest in any error that its content causes, so that it fails its own day only.

    Libraries raise errors of many kinds about odd values. Errors of the machine pass.
    """
    try:
        yield
    except (KycError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ManifestUnreadable(path, f"has a value that cannot be read ({type(error).__name__})") from error


def reader_of(path: Path) -> Reader | None:
    name = path.name.lower()
    for suffix, reader in _READERS.items():
        if name.endswith(suffix):
            return reader
    return None


def _count_ignored(ignored: Counter[str], name: str, rows: int) -> None:
    # A file with a million different keys must not fill memory or the run's metadata.
    known = name in ignored or len(ignored) < MAX_IGNORED_NAMES
    ignored[printable(name)[:64] if known else "(others)"] += rows


def _is_used(column: str) -> bool:
    return column in FIELDS or column.startswith(TAG_PREFIX)


def _chunk(columns: Mapping[str, Column], rows: Column, malformed: "Column | None" = None) -> pa.Table:
    """Builds a chunk from the columns that the file has; the fields that it lacks are null."""
    nulls = pa.nulls(len(rows), pa.string())
    fields = {name: columns.get(name, nulls) for name in (*FIELDS, *columns)}
    return pa.table({ROW: rows, MALFORMED: nulls if malformed is None else malformed, **fields})


# --- text -------------------------------------------------------------------------------------------------


def _text_blocks(path: Path) -> Iterator[str]:
    """Yields the file's text in blocks, without a byte order mark and with a line end at the end."""
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        source = gzip.GzipFile(fileobj=raw) if zipped else raw
        block = source.read(BLOCK_BYTES)
        decoder = codecs.getincrementaldecoder(_encoding_of(block))()
        last, lines = "", 0
        while block:
            try:
                text = decoder.decode(block)
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(error.encoding, "replace")
                line = lines + _line_ends(before) + 1
                reason = f"is not {error.encoding} text (line {line}): save it as UTF-8"
                raise ManifestUnreadable(path, reason) from error
            if "\0" in text:
                line = lines + _line_ends(text[: text.index("\0")]) + 1
                raise ManifestUnreadable(path, f"is not text: line {line} has a NUL character")
            lines += _line_ends(text)
            if text:
                last = text
                yield text
            block = source.read(BLOCK_BYTES)
        decoder.decode(b"", final=True)
        if last and last[-1] not in "\r\n":
            yield "\n"


def _line_ends(text: str) -> int:
    return text.count("\n") or text.count("\r")


def _encoding_of(start: bytes) -> str:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    sample = start[:64]
    # In UTF-16 without a byte order mark, every other byte of an ASCII header is zero.
    if len(sample) >= 4 and len(sample) % 2 == 0:
        if not any(sample[1::2]):
            return "utf-16-le"
        if not any(sample[0::2]):
            return "utf-16-be"
    return "utf-8-sig"


class _BlockStream(io.RawIOBase):
    """Text blocks as a stream of UTF-8 bytes, for pyarrow. Counts the quotes."""

    def __init__(self, blocks: Iterator[str]) -> None:
        super().__init__()
        self._blocks = blocks
        self._rest = memoryview(b"")
        self.quotes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed has no narrower type
        if not self._rest:
            data = next(self._blocks, "").encode()
            self.quotes += data.count(b'"')
            self._rest = memoryview(data)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


# --- CSV --------------------------------------------------------------------------------------------------


class _BadRows:
    """pyarrow's `invalid_row_handler`: collects the rows that have more or fewer fields than the header."""

    def __init__(self, separator: str, header: list[str]) -> None:
        self._separator = separator
        self._header = header
        self._pending: list[tuple[int, str | None, str]] = []
        self._next_number = 1

    def __call__(self, row: pacsv.InvalidRow) -> Literal["skip"]:
        # The serial reader always knows the row number; the header is row 1.
        number = (row.number or 0) - 1
        detail = f"expected {row.expected_columns} fields, found {row.actual_columns}"
        self._pending.append((number, self._id_in(row.text), detail))
        return "skip"

    def good_row_numbers(self, count: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """The row numbers of the next `count` good rows: the numbers between those of bad rows."""
        bad = np.array([number for number, _, _ in self._pending], dtype=np.int64)
        numbers = np.arange(self._next_number, self._next_number + count + len(bad), dtype=np.int64)
        numbers = numbers[~np.isin(numbers, bad)][:count]
        if count:
            self._next_number = int(numbers[-1]) + 1
        return numbers

    def chunks(self, *, final: bool = False) -> Iterator[pa.Table]:
        """Yields a chunk of the bad rows before the next good row, or of all the rest if `final`."""
        due = [row for row in self._pending if final or row[0] < self._next_number]
        self._pending = self._pending[len(due) :]
        if due:
            numbers, ids, details = zip(*due, strict=True)
            yield _chunk(
                {"submission_id": pa.array(ids, pa.string())},
                pa.array(numbers, pa.int64()),
                pa.array(details, pa.string()),
            )

    def _id_in(self, text: str) -> str | None:
        try:
            values = next(csv.reader(io.StringIO(text, newline=""), delimiter=self._separator), [])
        except csv.Error:
            return None
        index = self._header.index("submission_id")
        found = values[index] if index < len(values) else ""
        return found if SUBMISSION_ID.fullmatch(found) else None


def _read_csv(path: Path, ignored: Counter[str]) -> Iterator[pa.Table]:
    blocks = _text_blocks(path)
    start = next(blocks, "").lstrip("\r\n")
    if not start.strip():
        raise ManifestUnreadable(path, "is empty: its first row must name the columns")
    separator, header = _header(start, path)
    _check_header(header, path)
    stream = _BlockStream(itertools.chain([start], blocks))
    total = 0
    try:
        for chunk in _merged(_csv_chunks(stream, separator, header)):
            total += chunk.num_rows
            yield chunk
    except pa.ArrowInvalid as error:
        if "straddling" in str(error):
            raise ManifestUnreadable(
                path, f"has a row of more than {MAX_ROW_BYTES} bytes: is a quote or a line end missing?"
            ) from error
        raise ManifestUnreadable(path, "is not a valid CSV file") from error
    # An open quote swallows every row up to the next quote, so some rows were misread.
    if stream.quotes % 2:
        raise ManifestUnreadable(path, 'has an odd number of quotes ("): close or double the stray one')
    for column in header:
        if not _is_used(column):
            _count_ignored(ignored, column, total)


def _csv_chunks(stream: "_BlockStream", separator: str, header: list[str]) -> Iterator[pa.Table]:
    used = {str(i): column for i, column in enumerate(header) if _is_used(column)}
    bad_rows = _BadRows(separator, header)
    reader = pacsv.open_csv(
        cast("IO[bytes]", stream),
        # Only the serial reader knows row numbers.
        read_options=pacsv.ReadOptions(
            use_threads=False,
            block_size=BLOCK_BYTES,
            column_names=[str(i) for i in range(len(header))],
            skip_rows_after_names=1,
        ),
        parse_options=pacsv.ParseOptions(
            delimiter=separator, newlines_in_values=True, invalid_row_handler=bad_rows
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(used, pa.string()),
            include_columns=list(used),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    for batch in reader:
        columns = {column: batch.column(key) for key, column in used.items()}
        yield _chunk(columns, pa.array(bad_rows.good_row_numbers(batch.num_rows)))
        yield from bad_rows.chunks()
    yield from bad_rows.chunks(final=True)


def _merged(chunks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Merges small chunks, since each chunk has a fixed cost."""
    pending: list[pa.Table] = []
    rows = 0
    for chunk in chunks:
        pending.append(chunk)
        rows += chunk.num_rows
        if rows >= CHUNK_ROWS:
            yield pa.concat_tables(pending, promote_options="default").combine_chunks()
            pending, rows = [], 0
    if pending:
        yield pa.concat_tables(pending, promote_options="default").combine_chunks()


def _header(start: str, path: Path) -> tuple[str, list[str]]:
    """The separator and the column names: the combination with the most known names."""
    readings = []
    for separator in _SEPARATORS:
        try:
            row = next(csv.reader(io.StringIO(start, newline=""), delimiter=separator), [])
        except csv.Error as error:
            raise ManifestUnreadable(path, "has no readable header row") from error
        readings.append((separator, [column.strip() for column in row]))
    return max(readings, key=lambda reading: (sum(map(_is_used, reading[1])), len(reading[1])))


def _check_header(columns: list[str], path: Path) -> None:
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        raise ManifestUnreadable(
            path, f"has no column {', '.join(missing)}: the first row must name them; {_described(columns)}"
        )
    twice = sorted(column for column, n in Counter(columns).items() if n > 1 and _is_used(column))
    if twice:
        raise ManifestUnreadable(path, f"has the column {printable(twice[0])} twice")


def _described(columns: list[str]) -> str:
    """Describes a wrong header for a message, without repeating values that look like data."""
    if all(_COLUMN_NAME.fullmatch(column) for column in columns):
        return f"it names {', '.join(columns[:MAX_SHOWN_COLUMNS])}" + (
            f" and {len(columns) - MAX_SHOWN_COLUMNS} more" if len(columns) > MAX_SHOWN_COLUMNS else ""
        )
    return f"its {len(columns)} values look like data, not like names"


# --- JSON lines -------------------------------------------------------------------------------------------

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str | None)


def _read_jsonl(path: Path, ignored: Counter[str]) -> Iterator[pa.Table]:
    records: list[dict[str, str | None]] = []
    numbers: list[int] = []
    size = 0
    for number, line in enumerate(_lines(path), 1):
        records.append(_record(line, ignored))
        numbers.append(number)
        size += len(line)
        if len(records) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield _records_chunk(records, numbers)
            records, numbers, size = [], [], 0
    if records:
        yield _records_chunk(records, numbers)


def _lines(path: Path) -> Iterator[str]:
    rest = ""
    for block in _text_blocks(path):
        # Only \n and \r\n end a JSON line: strings may contain other line separators.
        *lines, rest = (rest + block).split("\n")
        if len(rest) > MAX_ROW_BYTES:
            raise ManifestUnreadable(path, f"has a line of more than {MAX_ROW_BYTES} bytes")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def has_duplicate_key(text: str) -> bool:
    """Whether the JSON object `text` itself (not an object inside it) has a duplicate key."""
    # The hook sees the outermost object last, and its result for that object is the return value.
    return bool(json.loads(text, object_pairs_hook=lambda pairs: len(dict(pairs)) < len(pairs)))


def _record(line: str, ignored: Counter[str]) -> dict[str, str | None]:
    data = line.strip().encode()
    try:
        raw = _OBJECT.decode(data)
        # The size of the compact JSON: if the line is just as long, it has no duplicate key.
        compact = 1 + sum(len(name.encode()) + len(bytes(value)) + 4 for name, value in raw.items())
        if compact != len(data) and has_duplicate_key(line):
            return {MALFORMED: "the line has a duplicate key"}
    except (ValueError, RecursionError):
        return {MALFORMED: "the line is not a JSON object"}
    record: dict[str, str | None] = {}
    for name, value in raw.items():
        if not _is_used(name):
            _count_ignored(ignored, name, 1)
            continue
        try:
            record[name] = _TEXT.decode(value)
        except ValueError:
            if name == "tags":
                record[name] = bytes(value).decode()
            else:
                record[MALFORMED] = f"{name if name in FIELDS else 'a tag'} must be text"
    return record


def _records_chunk(records: list[dict[str, str | None]], numbers: list[int]) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: pa.array([record.get(name) for record in records], pa.string()) for name in names}
    return _chunk(columns, pa.array(numbers, pa.int64()), columns.pop(MALFORMED, None))


# --- Parquet ----------------------------------------------------------------------------------------------


def _read_parquet(path: Path, ignored: Counter[str]) -> Iterator[pa.Table]:
    try:
        with path.open("rb") as source, pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            _check_header(schema.names, path)
            used = [column for column in schema.names if _is_used(column)]
            for column in used:
                _check_type(column, schema.field(column).type, path)
            total = 0
            for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=used):
                rows = pa.array(np.arange(total + 1, total + 1 + batch.num_rows, dtype=np.int64))
                total += batch.num_rows
                yield _chunk({column: _as_text(batch.column(column)) for column in used}, rows)
            for column in schema.names:
                if not _is_used(column):
                    _count_ignored(ignored, column, total)
    except pa.ArrowException as error:
        raise ManifestUnreadable(path, f"is not a readable Parquet file ({type(error).__name__})") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _check_type(column: str, kind: pa.DataType, path: Path) -> None:
    is_readable = (
        _is_text(kind)
        or (column == "tags" and (pa.types.is_map(kind) or pa.types.is_struct(kind)))
        or (column == "submitted_at" and pa.types.is_timestamp(kind))
    )
    if not is_readable:
        raise ManifestUnreadable(path, f"has the column {printable(column)} of type {kind}: it must be text")


def _as_text(array: Column) -> Column:
    kind = array.type
    if pa.types.is_map(kind):
        return pa.array(
            [None if tags is None else _pairs_json(tags) for tags in array.to_pylist()], pa.string()
        )
    if pa.types.is_struct(kind):
        # Every row of a struct has every field: a null means that the tag is absent.
        rows = array.to_pylist()
        return pa.array(
            [row and _pairs_json([(k, v) for k, v in row.items() if v is not None]) for row in rows],
            pa.string(),
        )
    if pa.types.is_timestamp(kind):
        # Without a time zone the text has no offset, and the row is rejected as in any other format.
        times = cast("list[datetime | None]", array.cast(pa.timestamp("us", kind.tz and "UTC")).to_pylist())
        return pa.array([time and time.isoformat() for time in times], pa.string())
    return array.cast(pa.string())


def _pairs_json(pairs: list[tuple[str, object]]) -> str:
    """A JSON object of the pairs, in order and with duplicate keys, which a tag rule rejects later."""
    members = (f"{_json(name)}:{_json(value)}" for name, value in pairs)
    return "{" + ",".join(members) + "}"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


_READERS: Final[dict[str, Reader]] = {
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".tsv": _read_csv,
    ".tsv.gz": _read_csv,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".parquet": _read_parquet,
}
