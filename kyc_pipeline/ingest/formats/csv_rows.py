"""Accounts for each line of a CSV: which row it is part of, and which lines a stray quote swallowed."""

import csv
import io
import itertools
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from kyc_pipeline.ingest.formats.columns import SUBMISSION_ID, SUBMISSION_ROWS, TAG_PREFIX, Layout
from kyc_pipeline.ingest.formats.size_limits import MAX_MALFORMED_ROWS, MAX_ROW_BYTES
from kyc_pipeline.ingest.formats.typed_values import ArrowColumn
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable, require_few_malformed
from kyc_pipeline.landing.zone import ManifestFile

ROW_TOO_LONG: Final = f"has a row of more than {MAX_ROW_BYTES} bytes: is a quote or a line end missing?"
LINE_ENDS: Final = re.compile(r"[\r\n]+")
csv.field_size_limit(MAX_ROW_BYTES)
_NULL_OF_A_DUMP: Final = "\\N"
"""MySQL, Hive and PostgreSQL write it in text dumps, where a backslash also escapes other characters."""
_TORN_TAG: Final = 'a tag has a line end: is a quote (") missing or stray?'
_LINE_END: Final = re.compile(r"\r*\n|\r")
_OTHER_ENDS: Final = {  # between two characters of text, so not part of \r\r\n or of an empty line
    "\r": re.compile(rb"\r(?<=[^\r\n]\r)\r*(?=[^\r\n])"),
    "\n": re.compile(rb"\n(?<=[^\r\n]\n)\n*(?=[^\r\n])"),
}
_IN_LINE: Final = re.compile(r"[^\r\n](?=[^\r\n])")
_TAIL: Final = 4096
_MARK: Final = "\ufdd0"
"""Stands for a line end that pyarrow must take as text. Unicode keeps it for such uses: no text has it."""


class TextStream(io.RawIOBase):
    """Text blocks as a stream of UTF-8 bytes, for pyarrow. Counts quotes and non-empty lines.

    A strict reader reads along: pyarrow takes text after a closing quote as part of the cell, and so can take
    two rows for one. `line` is the number of the first line.

    The header's line end (LF, with or without CR, or CR alone) is that of all rows. Another one outside
    quotes is text of a cell, or it would tear its row into two; pyarrow gets a mark in its place.
    Raises :class:`ManifestUnreadable`.
    """

    def __init__(
        self, start: str, blocks: Iterator[str], separator: str, path: ManifestFile, line: int
    ) -> None:
        super().__init__()
        self._path = path
        self._line = line
        first_end = _LINE_END.search(start)
        self._other_end = "\n" if first_end and first_end[0] == "\r" else "\r"
        self._has_marks = False
        self._blocks: deque[bytes] = deque()
        self._rest = memoryview(b"")
        lines = self._lines(_uncut(itertools.chain([start], blocks)))
        self._records = csv.reader(lines, delimiter=separator, strict=True)
        self._at_line_start = True
        self.quotes = 0
        self.lines = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed has no narrower type
        # Filled to the end: pyarrow refuses a row that is in more than two of the blocks that it gets.
        filled = 0
        while filled < len(buffer) and (self._rest or self._read_block()):
            size = min(len(buffer) - filled, len(self._rest))
            buffer[filled : filled + size] = self._rest[:size]
            self._rest = self._rest[size:]
            filled += size
        return filled

    def _read_block(self) -> bool:
        self._read_ahead()
        data = self._blocks.popleft() if self._blocks else b""
        self._rest = memoryview(self._marked(data))
        self._count(data)
        return bool(data)

    def unmarked(self, text: str) -> str:
        """`text` of pyarrow, with the line ends that were marked."""
        return text.replace(_MARK, self._other_end) if self._has_marks else text

    def unmarked_column(self, column: ArrowColumn) -> ArrowColumn:
        """A column of pyarrow's, with the line ends that were marked."""
        if not self._has_marks:
            return column
        return pc.replace_substring(cast("pa.StringArray", column), _MARK, self._other_end)

    def _marked(self, data: bytes) -> bytes:
        """`data` with a mark for each line end that is text. `quotes` counts those before it."""
        parts, last, is_quoted = [], 0, self.quotes % 2 == 1
        for match in _OTHER_ENDS[self._other_end].finditer(data):
            is_quoted ^= data.count(b'"', last, match.start()) % 2 == 1
            marks = match[0] if is_quoted else _MARK.encode() * len(match[0])
            parts += [data[last : match.start()], marks]
            self._has_marks |= not is_quoted
            last = match.end()
        return b"".join([*parts, data[last:]]) if parts else data

    def _lines(self, blocks: Iterator[str]) -> Iterator[str]:
        rest = ""
        for block in blocks:
            self._blocks.append(block.encode())
            for line in io.StringIO(rest + block, newline=""):
                if line[-1] in "\r\n":
                    yield line
                else:
                    rest = line
                    break
            else:
                rest = ""
            if len(rest) > MAX_ROW_BYTES:  # before it is copied again and again
                raise ManifestUnreadable(self._path, self._explained(""))

    def _read_ahead(self) -> None:
        """Reads whole rows until there is a block for pyarrow."""
        try:
            while not self._blocks and next(self._records, None) is not None:
                pass
        except csv.Error as error:
            raise ManifestUnreadable(self._path, self._explained(str(error))) from error

    def _explained(self, error: str) -> str:
        if "expected after" in error:
            number = self._line + self._records.line_num - 1
            return (
                f"has text after a closing quote (line {number}): double each quote in a cell; "
                "a backslash does not escape it"
            )
        if "unexpected end" in error:
            return "has a quoted cell without an end: close or double the stray quotes"
        return ROW_TOO_LONG

    def _count(self, data: bytes) -> None:
        if data:
            self.quotes += data.count(b'"')
            codes = np.frombuffer(data, np.uint8)
            ends = (codes == ord("\n")) | (codes == ord("\r"))
            starts = ~ends & np.concatenate(([self._at_line_start], ends[:-1]))
            self.lines += int(np.count_nonzero(starts))
            self._at_line_start = bool(ends[-1])


def _uncut(blocks: Iterable[str]) -> Iterator[str]:
    """The same text in blocks that are cut between two characters of one line.

    Where the last lines of a block have not even two characters, it may be cut at a line end.
    """
    rest = ""
    for block in blocks:
        text = rest + block
        tail = text[-_TAIL:]
        cuts = [match.end() for match in _IN_LINE.finditer(tail)] or [len(tail)]
        cut = len(text) - len(tail) + cuts[-1]
        rest = text[cut:]
        yield text[:cut]
    if rest:
        yield rest


class _OddRow(NamedTuple):
    """A row with more or fewer fields than the header: `cells` if it can be repaired, else `detail`."""

    number: int
    lines: int
    cells: list[str | None] | None
    submission_id: str | None
    detail: str
    swallows: bool


class CsvRows:
    """Turns what pyarrow reads into chunks, and accounts for each line of the file.

    It is pyarrow's `invalid_row_handler` too: a row with more or fewer fields than the header is malformed,
    unless only empty cells without a name make the difference, as Excel leaves them.
    A row of nothing but separators, quotes and blanks is skipped like an empty line.

    pyarrow reads ahead in a thread of its own and calls the handler there, while the caller turns the block
    before it into chunks. The handler therefore only counts and writes to a queue.
    """

    def __init__(
        self,
        path: ManifestFile,
        stream: TextStream,
        separator: str,
        names: list[str],
        header: list[str],
        width: int,
        layout: Layout = SUBMISSION_ROWS,
    ) -> None:
        self._path = path
        self._stream = stream
        self._layout = layout
        self._separator = separator
        self._named = len(header)
        self._names = [*layout.fields, *names]
        self._header = [*header, *[""] * width][:width]
        self.width = width
        self._id = header.index("submission_id")
        self._queue: deque[_OddRow] = deque()
        self._odd_numbers: list[int] = []
        self._odd_rows: list[_OddRow] = []
        self._next_number = 1
        self._malformed = 0
        self.unnamed_cells = 0
        self.lines = 1 + sum(len(LINE_ENDS.findall(name)) for name in names)
        """How many lines of the file the header and the rows so far account for."""

    def __call__(self, row: pacsv.InvalidRow) -> Literal["skip", "error"]:
        # The serial reader always knows the row number; the header is row 1.
        number = (row.number or 0) - 1
        text = self._stream.unmarked(row.text)
        try:
            values = next(csv.reader(io.StringIO(text, newline=""), delimiter=self._separator), [])
        except csv.Error:
            values = []
        width = self.width
        lines = LINE_ENDS.split(text.strip("\r\n"))
        cells: list[str | None] | None = None
        is_one_line = len(lines) == 1 and bool(values)
        if is_one_line and not any([*self._header[len(values) :], *map(str.strip, values[width:])]):
            cells = [value or None for value in values[:width] + [""] * (width - len(values))]
        found = values[self._id] if self._id < len(values) else ""
        shown = found if SUBMISSION_ID.fullmatch(found) else None
        detail = f"expected {self._named} fields, found {row.actual_columns}"
        # pyarrow does not pass on what its handler raises.
        swallows = sum(self._looks_like_columns(line, 0, width) for line in lines) > 1
        self._malformed += cells is None
        self._queue.append(_OddRow(number, len(lines), cells, shown, detail, swallows))
        return "skip" if self._malformed <= MAX_MALFORMED_ROWS else "error"

    def require_few_malformed(self) -> None:
        """Raises :class:`ManifestUnreadable` if the handler stopped reading after too many malformed rows.

        It counts them itself, because pyarrow returns nothing before it has a good row.
        """
        require_few_malformed(self._path, self._malformed, MAX_MALFORMED_ROWS)

    def _take_odd_rows(self) -> None:
        while self._queue:
            row = self._queue.popleft()
            self._odd_numbers.append(row.number)
            self._odd_rows.append(row)

    def good(self, columns: Sequence[ArrowColumn]) -> Iterator[pa.Table]:
        """Yields the chunk of rows that have as many fields as the header.

        Their numbers are those between the numbers of the others.
        """
        self._take_odd_rows()
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
        self._take_odd_rows()
        rows, self._odd_rows = self._odd_rows, []
        for row in rows:
            if row.swallows:
                raise self._swallows_rows(row.number)
        repaired = [(row.number, row.cells) for row in rows if row.cells is not None]
        if repaired:
            numbers, cells = zip(*repaired, strict=True)
            columns = [pa.array(column, pa.string()) for column in zip(*cells, strict=True)]
            yield self._rows(columns, pa.array(numbers, pa.int64()))
        malformed = [(row.number, row.submission_id, row.detail) for row in rows if row.cells is None]
        if malformed:
            self.lines += sum(row.lines for row in rows if row.cells is None)
            numbers, ids, details = zip(*malformed, strict=True)
            yield self._layout.chunk_of(
                {"submission_id": pa.array(ids, pa.string())},
                pa.array(numbers, pa.int64()),
                pa.array(details, pa.string()),
            )

    def _rows(self, columns: Sequence[ArrowColumn], numbers: ArrowColumn) -> pa.Table:
        self.lines += len(numbers)
        columns = list(map(self._stream.unmarked_column, columns))
        problems: dict[int, str] = {}
        for index, (name, column) in enumerate(zip(self._header, columns, strict=True)):
            if index >= self._named and column.null_count < len(column):
                surplus = f"expected {self._named} fields, found {index + 1}"
                problems |= dict.fromkeys(np.flatnonzero(_filled(column)).tolist(), surplus)
            elif not name:
                self.unnamed_cells += len(column) - column.null_count
            found = pc.count_substring_regex(cast("pa.StringArray", column), LINE_ENDS.pattern)
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
        used = {
            name: column
            for name, column in zip(self._header, columns, strict=True)
            if self._layout.is_used(name)
        }
        self._refuse_dump(used.values(), numbers)
        malformed = pa.array([problems.get(row) for row in range(len(numbers))]) if problems else None
        chunk = self._layout.chunk_of(used, numbers, malformed)
        if _filled(columns[self._id]).all():
            return chunk
        return chunk.filter(pa.array(np.logical_or.reduce([_filled(column) for column in columns])))

    def _refuse_dump(self, columns: Iterable[ArrowColumn], numbers: ArrowColumn) -> None:
        for column in columns:
            row = pc.index(column, _NULL_OF_A_DUMP).as_py()
            if row >= 0:
                raise ManifestUnreadable(
                    self._path,
                    rf"has \N for an absent value (row {numbers[row]}): leave it empty, and escape nothing",
                )

    def _is_header(self, cells: list[str | None], number: int) -> bool:
        """Whether a row is the header of another file, joined to this one."""
        names = [self._layout.column_of(cell or "") for cell in cells]
        if not set(self._layout.required) <= set(names):
            return False
        pairs, is_used = zip(names, self._header, strict=True), self._layout.is_used
        if any(name != column and (is_used(name) or is_used(column)) for name, column in pairs):
            raise ManifestUnreadable(
                self._path, f"names other columns in row {number}: deliver joined files one by one"
            )
        return True

    def _swallows(self, cell: str, index: int) -> bool:
        """Whether a cell in column `index` holds the rest of its row, and then other rows.

        The lines of an address or a note do not look like rows.
        """
        first, *middle, last = LINE_ENDS.split(cell)
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
            f"has a cell with whole rows in it (row {number}): close or double its quotes, and end all rows "
            "alike (CR, LF or CRLF)",
        )


def _filled(column: ArrowColumn) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which cells have a value other than blanks."""
    texts = cast("pa.StringArray", column)
    is_blank = pc.or_(pc.utf8_is_space(texts), pc.equal(texts, pa.scalar(""))).fill_null(True)
    return ~is_blank.to_numpy(zero_copy_only=False)
