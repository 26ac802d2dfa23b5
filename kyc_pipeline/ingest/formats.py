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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Literal, TypeAlias, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.typed_values import Column, has_texts, tags_json, texts, times, without_text

FIELDS: Final = ("submission_id", "id_file", "selfie_file", "tags", "submitted_at")
REQUIRED: Final = FIELDS[:3]
TAG_PREFIX: Final = "tag."
ROW: Final = "manifest_row"
MALFORMED: Final = "malformed"
SUBMISSION_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

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
_BLANKS: Final = re.compile(r"[\s_-]+")
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


def _column(name: str) -> str:
    """The field or tag that a name in a manifest means.

    Upper and lower case, blanks and hyphens make no difference to a field. The name of a tag is kept, without
    blanks around it.
    """
    name = name.strip()
    if name in FIELDS:
        return name
    field = _BLANKS.sub("_", name).lower()
    if field in FIELDS:
        return field
    prefix, dot, tag = name.partition(".")
    return TAG_PREFIX + tag.strip() if dot and prefix.strip().lower() == "tag" else name


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
                reason = f"is not {error.encoding} text (line {line}): save it as UTF-8 (CSV UTF-8 in Excel)"
                raise ManifestUnreadable(path, reason) from error
            if "\0" in text:
                line = lines + _line_ends(text[: text.index("\0")]) + 1
                raise ManifestUnreadable(path, f"is not text: line {line} has a NUL character")
            lines += _line_ends(text)
            if "\ufeff" in text:
                # Files that were joined have a byte order mark at the start of each.
                text = _LATER_MARK.sub("", text[last[-1:] in ("\r", "\n") and text[0] == "\ufeff" :])
            if text:
                last = text
                yield text
            block = source.read(BLOCK_BYTES)
        decoder.decode(b"", final=True)
        if last and last[-1] not in "\r\n":
            yield "\n"


_LATER_MARK: Final = re.compile(r"(?<=[\r\n])\ufeff")


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
    """Text blocks as a stream of UTF-8 bytes, for pyarrow. Counts quotes and non-empty lines."""

    def __init__(self, blocks: Iterator[str]) -> None:
        super().__init__()
        self._blocks = blocks
        self._rest = memoryview(b"")
        self._at_line_start = True
        self.quotes = 0
        self.lines = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed has no narrower type
        if not self._rest:
            data = next(self._blocks, "").encode()
            self._count(data)
            self._rest = memoryview(data)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _count(self, data: bytes) -> None:
        if data:
            self.quotes += data.count(b'"')
            codes = np.frombuffer(data, np.uint8)
            ends = (codes == ord("\n")) | (codes == ord("\r"))
            starts = ~ends & np.concatenate(([self._at_line_start], ends[:-1]))
            self.lines += int(np.count_nonzero(starts))
            self._at_line_start = bool(ends[-1])


# --- CSV --------------------------------------------------------------------------------------------------

_LINE_ENDS: Final = re.compile(r"[\r\n]+")
_SEPARATOR_LINE: Final = re.compile(r'"?sep=.?"?[\r\n]+', re.IGNORECASE)
"""Excel's own first line, which names the separator. It is not data."""


_TORN_TAG: Final = 'a tag has a line end: is a quote (") missing or stray?'


class _CsvRows:
    """Turns what pyarrow reads into chunks, and accounts for each line of the file.

    It is pyarrow's `invalid_row_handler` too: a row with more or fewer fields than the header is malformed,
    unless only empty cells without a name make the difference, as Excel leaves them.
    A row of nothing but separators is skipped like an empty line.
    """

    def __init__(self, path: Path, separator: str, names: list[str], header: list[str], width: int) -> None:
        self._path = path
        self._separator = separator
        self._named = len(header)
        self._names = [*FIELDS, *names]
        self._header = [*header, *[""] * width][:width]
        self.width = width
        self._id = header.index("submission_id")
        self._odd_numbers: list[int] = []
        self._malformed: list[tuple[int, str | None, str]] = []
        self._repaired: list[tuple[int, list[str | None]]] = []
        self._swallowing: int | None = None  # pyarrow does not pass on what its handler raises
        self._next_number = 1
        self.unnamed_cells = 0
        self.lines = 1 + sum(len(_LINE_ENDS.findall(name)) for name in names)
        """How many lines of the file the header and the rows so far account for."""

    def __call__(self, row: pacsv.InvalidRow) -> Literal["skip"]:
        # The serial reader always knows the row number; the header is row 1.
        number = (row.number or 0) - 1
        self._odd_numbers.append(number)
        try:
            values = next(csv.reader(io.StringIO(row.text, newline=""), delimiter=self._separator), [])
        except csv.Error:
            values = []
        width = self.width
        lines = _LINE_ENDS.split(row.text.strip("\r\n"))
        if len(lines) == 1 and values and not any(self._header[len(values) :]) and not any(values[width:]):
            padded = values[:width] + [""] * (width - len(values))
            self._repaired.append((number, [value or None for value in padded]))
            return "skip"
        self.lines += len(lines)
        if sum(self._looks_like_columns(line, 0, width) for line in lines) > 1:
            self._swallowing = self._swallowing or number
        found = values[self._id] if self._id < len(values) else ""
        shown = found if SUBMISSION_ID.fullmatch(found) else None
        detail = f"expected {self._named} fields, found {row.actual_columns}"
        self._malformed.append((number, shown, detail))
        return "skip"

    def good(self, columns: Sequence[Column]) -> Iterator[pa.Table]:
        """Yields the chunk of rows that have as many fields as the header.

        Their numbers are those between the numbers of the others.
        """
        count = len(columns[0])
        odd = np.array(self._odd_numbers, dtype=np.int64)
        numbers = np.arange(self._next_number, self._next_number + count + len(odd), dtype=np.int64)
        numbers = numbers[~np.isin(numbers, odd)][:count]
        if count:
            self._next_number = int(numbers[-1]) + 1
            self._odd_numbers = [number for number in self._odd_numbers if number >= self._next_number]
            yield self._rows(columns, pa.array(numbers))

    def others(self) -> Iterator[pa.Table]:
        """Yields the rows since the last call that have more or fewer fields than the header."""
        if self._swallowing is not None:
            raise self._swallows_rows(self._swallowing)
        if self._repaired:
            numbers, rows = zip(*self._repaired, strict=True)
            self._repaired = []
            columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
            yield self._rows(columns, pa.array(numbers, pa.int64()))
        if self._malformed:
            numbers, ids, details = zip(*self._malformed, strict=True)
            self._malformed = []
            yield _chunk(
                {"submission_id": pa.array(ids, pa.string())},
                pa.array(numbers, pa.int64()),
                pa.array(details, pa.string()),
            )

    def _rows(self, columns: Sequence[Column], numbers: Column) -> pa.Table:
        self.lines += len(numbers)
        problems: dict[int, str] = {}
        for index, (name, column) in enumerate(zip(self._header, columns, strict=True)):
            if index >= self._named and column.null_count < len(column):
                surplus = f"expected {self._named} fields, found {index + 1}"
                problems |= dict.fromkeys(np.flatnonzero(_filled(column)).tolist(), surplus)
            elif not name:
                self.unnamed_cells += len(column) - column.null_count
            found = pc.count_substring_regex(cast("pa.StringArray", column), _LINE_ENDS.pattern)
            line_ends = found.fill_null(0).to_numpy()
            self.lines += int(line_ends.sum())
            for row in np.flatnonzero(line_ends).tolist():
                if self._swallows(column[row].as_py(), index):
                    raise self._swallows_rows(numbers[row].as_py())
                if name.startswith(TAG_PREFIX):
                    problems[row] = _TORN_TAG
        for row in np.flatnonzero(pc.is_in(columns[self._id], pa.array(self._names))).tolist():
            if self._is_header([column[row].as_py() for column in columns], numbers[row].as_py()):
                problems[row] = "the row repeats the names of the columns"
        used = {name: column for name, column in zip(self._header, columns, strict=True) if _is_used(name)}
        malformed = pa.array([problems.get(row) for row in range(len(numbers))]) if problems else None
        chunk = _chunk(used, numbers, malformed)
        if not columns[self._id].null_count:
            return chunk
        return chunk.filter(pa.array(np.logical_or.reduce([_filled(column) for column in columns])))

    def _is_header(self, cells: list[str | None], number: int) -> bool:
        """Whether a row is the header of another file, joined to this one."""
        names = [_column(cell or "") for cell in cells]
        if not set(REQUIRED) <= set(names):
            return False
        pairs = zip(names, self._header, strict=True)
        if any(name != column and (_is_used(name) or _is_used(column)) for name, column in pairs):
            raise ManifestUnreadable(
                self._path, f"names other columns in row {number}: deliver joined files one by one"
            )
        return True

    def _swallows(self, cell: str, index: int) -> bool:
        """Whether the lines of a cell in column `index` are the rest of one row, and other rows.

        An address or a note of several lines is none of these.
        """
        first, *middle, last = _LINE_ENDS.split(cell)
        return self._looks_like_columns(first, index, self.width) and (
            self._looks_like_columns(last, 0, index + 1)
            or any(self._looks_like_columns(line, 0, self.width) for line in middle)
        )

    def _looks_like_columns(self, line: str, start: int, stop: int) -> bool:
        fields = line.split(self._separator)
        if len(fields) < stop - start:
            return False
        return not start <= self._id < stop or bool(
            SUBMISSION_ID.fullmatch(fields[self._id - start].strip().strip('"'))
        )

    def _swallows_rows(self, number: int) -> ManifestUnreadable:
        return ManifestUnreadable(
            self._path,
            f"has a quoted cell with whole rows in it (row {number}): close or double its quotes",
        )


def _filled(column: Column) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    return column.is_valid().to_numpy(zero_copy_only=False)


def _read_csv(path: Path, ignored: Counter[str]) -> Iterator[pa.Table]:
    blocks = _text_blocks(path)
    start = next(blocks, "").lstrip("\r\n")
    if separator_line := _SEPARATOR_LINE.match(start):
        start = start[separator_line.end() :]
    if not start.strip():
        raise ManifestUnreadable(path, "is empty: its first row must name the columns")
    separator, names, width = _header(start, path)
    header = [_column(name) for name in names]
    _check_header(header, path)
    stream = _BlockStream(itertools.chain([start], blocks))
    rows = _CsvRows(path, separator, names, header, width)
    total = 0
    try:
        for chunk in _merged(_csv_chunks(stream, rows, separator)):
            total += chunk.num_rows
            yield chunk
    except pa.ArrowInvalid as error:
        if "straddling" in str(error):
            raise ManifestUnreadable(
                path, f"has a row of more than {MAX_ROW_BYTES} bytes: is a quote or a line end missing?"
            ) from error
        raise ManifestUnreadable(path, "is not a valid CSV file") from error
    _reconcile(stream, rows, path)
    for column in header:
        if column and not _is_used(column):
            _count_ignored(ignored, column, total)
    if rows.unnamed_cells:
        _count_ignored(ignored, "", rows.unnamed_cells)


def _reconcile(stream: _BlockStream, rows: _CsvRows, path: Path) -> None:
    # An open quote swallows every row up to the next quote, so some rows were misread.
    if stream.quotes % 2:
        raise ManifestUnreadable(path, 'has an odd number of quotes ("): close or double the stray one')
    if rows.lines != stream.lines:
        raise ManifestUnreadable(
            path, f"has {stream.lines} lines, but its rows have {rows.lines}: is a quote missing or stray?"
        )


def _csv_chunks(stream: _BlockStream, rows: _CsvRows, separator: str) -> Iterator[pa.Table]:
    keys = [str(index) for index in range(rows.width)]
    reader = pacsv.open_csv(
        cast("IO[bytes]", stream),
        # Only the serial reader knows row numbers.
        read_options=pacsv.ReadOptions(
            use_threads=False, block_size=BLOCK_BYTES, column_names=keys, skip_rows_after_names=1
        ),
        parse_options=pacsv.ParseOptions(
            delimiter=separator, newlines_in_values=True, invalid_row_handler=rows
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(keys, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )
    for batch in reader:
        yield from rows.good(batch.columns)
        yield from rows.others()
    yield from rows.others()


def _merged(chunks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Merges small chunks, since each chunk has a fixed cost."""
    pending: list[pa.Table] = []
    rows = 0
    for chunk in chunks:
        if not chunk.num_rows:
            continue
        pending.append(chunk)
        rows += chunk.num_rows
        if rows >= CHUNK_ROWS:
            yield pa.concat_tables(pending, promote_options="default").combine_chunks()
            pending, rows = [], 0
    if pending:
        yield pa.concat_tables(pending, promote_options="default").combine_chunks()


def _header(start: str, path: Path) -> tuple[str, list[str], int]:
    """The separator, the column names, and how many fields a row has.

    The separator is the one that gives the most known names. Often all rows have some empty cells more than
    the header, or fewer than its names: the first row decides.
    """
    readings = []
    for separator in _SEPARATORS:
        rows = filter(None, csv.reader(io.StringIO(start, newline=""), delimiter=separator))
        try:
            readings.append((separator, next(rows, []), rows))
        except csv.Error as error:
            raise ManifestUnreadable(path, "has no readable header row") from error
    separator, names, rows = max(
        readings, key=lambda reading: (sum(_is_used(_column(name)) for name in reading[1]), len(reading[1]))
    )
    first: list[str] = []
    with contextlib.suppress(csv.Error):
        first = next(rows, [])
    differ_in_empty_cells = first and not any([*names[len(first) :], *first[len(names) :]])
    is_one_line = not any(map(_LINE_ENDS.search, first))
    return separator, names, len(first) if differ_in_empty_cells and is_one_line else len(names)


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
_NO_OBJECT: Final = "the line is not a JSON object"
_DUPLICATE_KEY: Final = "the line has a duplicate key"


def _read_jsonl(path: Path, ignored: Counter[str]) -> Iterator[pa.Table]:
    records: list[dict[str, str | None]] = []
    numbers: list[int] = []
    size = 0
    is_lines = False
    for number, line in enumerate(_lines(path), 1):
        record = _record(line, ignored)
        # Once a line was an object, the file is JSON Lines.
        is_lines = is_lines or record.get(MALFORMED) != _NO_OBJECT
        if not is_lines and _is_part_of_an_array(line):
            raise ManifestUnreadable(path, f"is a JSON array (line {number}): write one object per line")
        records.append(record)
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
    try:
        values = _values(line.strip())
        # The size of the compact JSON: if the line is just as long, it has no duplicate key.
        compact = 1 + sum(len(name.encode()) + len(value) + 4 for name, value in values.items())
        if compact != len(line.strip().encode()) and has_duplicate_key(line):
            return {MALFORMED: _DUPLICATE_KEY}
    except (ValueError, RecursionError):
        return {MALFORMED: _NO_OBJECT}
    record: dict[str, str | None] = {}
    for key, value in values.items():
        name = _column(key)
        if not _is_used(name):
            _count_ignored(ignored, name, 1)
            continue
        if name in record:
            return {MALFORMED: _DUPLICATE_KEY}
        try:
            record[name] = _TEXT.decode(value)
        except ValueError:
            if name == "tags":
                record[name] = value.decode()
            else:
                record[MALFORMED] = f"{name if name in FIELDS else 'a tag'} must be text"
    return record


class _Pairs(list[tuple[str, object]]):
    """The members of a JSON object."""


def _values(line: str) -> Mapping[str, bytes]:
    """The JSON text of each value of an object. Raises ValueError or RecursionError.

    Other tools write NaN, and halves of characters, which JSON does not have. Each value that is used is
    checked on its own, so that these do no harm in a column that is not.
    """
    try:
        return {name: bytes(value) for name, value in _OBJECT.decode(line).items()}
    except msgspec.DecodeError:
        pairs = json.loads(line, object_pairs_hook=_Pairs)
        if not isinstance(pairs, _Pairs):
            raise
        return {name.encode().decode(): _json_text(value).encode() for name, value in pairs}


def _json_text(value: object) -> str:
    if isinstance(value, _Pairs):
        return "{" + ",".join(f"{json.dumps(name)}:{_json_text(member)}" for name, member in value) + "}"
    return json.dumps(value)


def _is_part_of_an_array(line: str) -> bool:
    """Whether a line that is no object is the start or an element of an array of objects."""
    text = line.strip()
    if text.endswith(("[", "[{")) or (text.startswith("[") and text[1:].lstrip().startswith("{")):
        return True
    element = text.removesuffix(",")
    return element != text and _record(element, Counter()).get(MALFORMED) != _NO_OBJECT


def _records_chunk(records: list[dict[str, str | None]], numbers: list[int]) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: pa.array([record.get(name) for record in records], pa.string()) for name in names}
    return _chunk(columns, pa.array(numbers, pa.int64()), columns.pop(MALFORMED, None))


# --- Parquet ----------------------------------------------------------------------------------------------


_SPARK: Final = b"org.apache.spark.version"


def _read_parquet(path: Path, ignored: Counter[str]) -> Iterator[pa.Table]:
    try:
        # INT96 has no years after 2262 in nanoseconds.
        with path.open("rb") as source, pq.ParquetFile(source, coerce_int96_timestamp_unit="us") as file:
            names = {name: _column(name) for name in file.schema_arrow.names}
            _check_header([names[name] for name in file.schema_arrow.names], path)
            used = {name: column for name, column in names.items() if _is_used(column)}
            in_utc = _int96_columns_of_spark(file)
            total = 0
            for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=list(used)):
                rows = pa.array(np.arange(total + 1, total + 1 + batch.num_rows, dtype=np.int64))
                total += batch.num_rows
                columns = {column: batch.column(name) for name, column in used.items()}
                yield _typed_chunk(columns, rows, in_utc, path)
            for column in names:
                if column not in used:
                    _count_ignored(ignored, column, total)
    except pa.ArrowException as error:
        raise ManifestUnreadable(path, f"is not a readable Parquet file ({type(error).__name__})") from error


def _int96_columns_of_spark(file: pq.ParquetFile) -> set[str]:
    """INT96 has no time zone, but Spark writes UTC; other tools write local time."""
    if _SPARK not in (file.metadata.metadata or {}):
        return set()
    columns = (file.schema.column(index) for index in range(len(file.schema)))
    return {_column(column.path) for column in columns if column.physical_type == "INT96"}


def _typed_chunk(columns: Mapping[str, Column], rows: Column, in_utc: set[str], path: Path) -> pa.Table:
    found: dict[str, Column] = {}
    malformed = pa.nulls(len(rows), pa.string())
    for name, array in columns.items():
        kind = array.type
        if name == "tags" and (pa.types.is_map(kind) or pa.types.is_struct(kind)):
            found[name] = tags_json(array)
        elif name == "submitted_at" and pa.types.is_timestamp(kind):
            found[name] = times(array.cast(pa.timestamp(kind.unit, "UTC")) if name in in_utc else array)
        else:
            is_allowed = has_texts(kind) and (name.startswith(TAG_PREFIX) or not pa.types.is_date(kind))
            if not is_allowed and array.null_count < len(array):
                raise ManifestUnreadable(
                    path, f"has the column {printable(name)} of type {kind}: it must be text"
                )
            found[name] = texts(array)
            problem = f"{name if name in FIELDS else 'a tag'} must be text"
            malformed = pc.if_else(without_text(array, found[name]), problem, malformed)
    return _chunk(found, rows, malformed)


_READERS: Final[dict[str, Reader]] = {
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".tsv": _read_csv,
    ".tsv.gz": _read_csv,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".parquet": _read_parquet,
}
