"""Accounts for each line of a CSV: which row it is part of, and which lines a stray quote swallowed."""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from kyc_pipeline.ingest.formats.columns import SUBMISSION_ID, SUBMISSION_ROWS, TAG_PREFIX, Layout
from kyc_pipeline.ingest.formats.csv_line_ends import LineEnds
from kyc_pipeline.ingest.formats.size_limits import MAX_MALFORMED_ROWS, MAX_ROW_BYTES
from kyc_pipeline.ingest.formats.typed_values import ArrowColumn
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable, require_few_malformed
from kyc_pipeline.landing.zone import ManifestFile

_ROW_TOO_LONG: Final = f"has a row of more than {MAX_ROW_BYTES} bytes: is a quote or a line end missing?"
_END_ALIKE: Final = "end all rows alike (CR, LF or CRLF)"
LINE_ENDS: Final = re.compile(r"[\r\n]+")
csv.field_size_limit(MAX_ROW_BYTES)
_NULL_OF_A_DUMP: Final = "\\N"
"""MySQL, Hive and PostgreSQL write it in text dumps, where a backslash also escapes other characters."""
_TORN_TAG: Final = 'a tag has a line end: is a quote (") missing or stray?'


class RowBlocks:
    """Marked text as blocks of whole rows in UTF-8, for pyarrow. Counts quotes and non-empty lines.

    Python's strict reader reads along and tells where rows end. It refuses text after a closing quote:
    pyarrow would take that as part of the cell, and could take two rows for one. `line` is the first line's
    number. Raises :class:`ManifestUnreadable`.
    """

    def __init__(
        self,
        start: str,
        texts: Iterator[str],
        separator: str,
        line_ends: LineEnds,
        path: ManifestFile,
        line: int,
    ) -> None:
        self._path = path
        self._line = line
        self._line_ends = line_ends
        self._read: list[str] = []
        self._row_start = 0
        """In `_read`, of the row that is not whole yet."""
        self._is_text_read = False
        lines = self._lines(itertools.chain([start], texts))
        self._records = csv.reader(lines, delimiter=separator, strict=True)
        self.quotes = 0
        self.lines = 0

    def __iter__(self) -> Iterator[bytes]:
        try:
            for _ in self._records:
                if self._is_text_read:
                    yield self._utf8()
                self._row_start = len(self._read)
        except csv.Error as error:
            raise ManifestUnreadable(self._path, self._explained(str(error))) from error
        if self._read:
            yield self._utf8()

    def _lines(self, texts: Iterator[str]) -> Iterator[str]:
        """Yields line by line, and keeps the lines for the next block."""
        unread = ""
        for text in texts:
            marked = self._line_ends.marked(text, unread)
            end = self._line_ends.decided(marked)
            unread = marked[end:]
            for line in io.StringIO(marked[:end], newline=""):
                self._read.append(line)
                yield line
            self._is_text_read = True
            row = "".join([*self._read[self._row_start :], unread])
            if len(self._line_ends.unmarked(row).encode()) > MAX_ROW_BYTES:
                raise ManifestUnreadable(self._path, _ROW_TOO_LONG)
        for line in io.StringIO(unread, newline=""):
            self._read.append(line)
            yield line

    def _utf8(self) -> bytes:
        """The rows that were read. Counts quotes and lines."""
        rows = "".join(self._read)
        self._read.clear()
        self._is_text_read = False
        self._line += rows.count(self._line_ends.of_rows)
        self.quotes += rows.count('"')
        codes = np.frombuffer(self._line_ends.unmarked(rows).encode(), np.uint8)
        ends = (codes == ord("\n")) | (codes == ord("\r"))
        starts = ~ends & np.concatenate(([True], ends[:-1]))  # a block begins with a line
        self.lines += int(np.count_nonzero(starts))
        return rows.encode()

    def _explained(self, error: str) -> str:
        if "expected after" in error:
            number = self._line + "".join(self._read).count(self._line_ends.of_rows) - 1
            return (
                f"has text after a closing quote (line {number}): double each quote in a cell, since a "
                f"backslash does not escape it, and {_END_ALIKE}"
            )
        if "unexpected end" in error:
            return "has a quoted cell without an end: close or double the stray quotes"
        return _ROW_TOO_LONG


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
    """

    def __init__(
        self,
        path: ManifestFile,
        line_ends: LineEnds,
        separator: str,
        names: list[str],
        header: list[str],
        width: int,
        layout: Layout = SUBMISSION_ROWS,
    ) -> None:
        self._path = path
        self._line_ends = line_ends
        self._layout = layout
        self._separator = separator
        self._named = len(header)
        self._names = [*layout.fields, *names]
        self._header = [*header, *[""] * width][:width]
        self.width = width
        self._id = header.index("submission_id")
        self._odd_rows: list[_OddRow] = []
        self._next_number = 0  # the header's
        self._malformed = 0
        self.unnamed_cells = 0
        self.lines = 1 + sum(len(LINE_ENDS.findall(name)) for name in names)
        """How many lines of the file the header and the rows so far account for."""

    def __call__(self, row: pacsv.InvalidRow) -> Literal["skip", "error"]:
        number = self._next_number + (row.number or 1) - 1  # pyarrow counts from 1 in each block
        unmarked = self._line_ends.unmarked
        try:
            values = next(csv.reader(io.StringIO(row.text, newline=""), delimiter=self._separator), [])
        except csv.Error:
            values = []
        width = self.width
        lines = LINE_ENDS.split(unmarked(row.text).strip("\r\n"))
        cells: list[str | None] | None = None
        is_one_line = len(lines) == 1 and bool(values)
        if is_one_line and not any([*self._header[len(values) :], *map(str.strip, values[width:])]):
            cells = [value or None for value in values[:width] + [""] * (width - len(values))]
        found = unmarked(values[self._id]) if self._id < len(values) else ""
        shown = found if SUBMISSION_ID.fullmatch(found) else None
        detail = f"expected {self._named} fields, found {row.actual_columns}"
        # pyarrow does not pass on what its handler raises.
        swallows = sum(self._looks_like_columns(line, 0, width) for line in lines) > 1
        self._malformed += cells is None
        self._odd_rows.append(_OddRow(number, len(lines), cells, shown, detail, swallows))
        return "skip" if self._malformed <= MAX_MALFORMED_ROWS else "error"

    def require_few_malformed(self) -> None:
        """Raises :class:`ManifestUnreadable` if the handler stopped reading after too many malformed rows."""
        require_few_malformed(self._path, self._malformed, MAX_MALFORMED_ROWS)

    def chunks(self, columns: Sequence[ArrowColumn]) -> Iterator[pa.Table]:
        """Yields the chunks of the next block: `columns`, then the rows that the handler got meanwhile."""
        odd_rows, self._odd_rows = self._odd_rows, []
        first = max(self._next_number, 1)
        self._next_number = first + len(columns[0]) + len(odd_rows)
        numbers = np.arange(first, self._next_number, dtype=np.int64)
        numbers = numbers[~np.isin(numbers, [row.number for row in odd_rows])]
        if len(numbers):
            yield self._rows(columns, pa.array(numbers))
        for row in odd_rows:
            if row.swallows:
                raise self._swallows_rows(row.number)
        repaired = [(row.number, row.cells) for row in odd_rows if row.cells is not None]
        if repaired:
            odd_numbers, cells = zip(*repaired, strict=True)
            columns = [pa.array(column, pa.string()) for column in zip(*cells, strict=True)]
            yield self._rows(columns, pa.array(odd_numbers, pa.int64()))
        malformed = [(row.number, row.submission_id, row.detail) for row in odd_rows if row.cells is None]
        if malformed:
            self.lines += sum(row.lines for row in odd_rows if row.cells is None)
            odd_numbers, ids, details = zip(*malformed, strict=True)
            yield self._layout.chunk_of(
                {"submission_id": pa.array(ids, pa.string())},
                pa.array(odd_numbers, pa.int64()),
                pa.array(details, pa.string()),
            )

    def _rows(self, columns: Sequence[ArrowColumn], numbers: ArrowColumn) -> pa.Table:
        self.lines += len(numbers)
        columns = list(map(self._line_ends.unmarked_column, columns))
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
            f"has a cell with whole rows in it (row {number}): close or double its quotes, and {_END_ALIKE}",
        )


def _filled(column: ArrowColumn) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which cells have a value other than blanks."""
    texts = cast("pa.StringArray", column)
    is_blank = pc.or_(pc.utf8_is_space(texts), pc.equal(texts, pa.scalar(""))).fill_null(True)
    return ~is_blank.to_numpy(zero_copy_only=False)
