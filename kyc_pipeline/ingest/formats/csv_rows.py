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
_MARK: Final = "\ufdd0"
"""Stands for a line end that pyarrow must take as text. Unicode keeps it for such uses: no text has it."""
_MARK_UTF8: Final = _MARK.encode()


class RowBlocks:
    """Text as blocks of whole rows in UTF-8, for pyarrow. Counts quotes and non-empty lines.

    A strict reader reads along and tells where rows end. It also refuses text after a closing quote, which
    pyarrow takes as part of the cell: it would read two rows as one. `line` is the number of the first line.

    The header's line end (LF, with or without CR, or CR alone) is that of all rows. Another one is text of a
    cell, or it would tear its row into two; pyarrow gets a mark in its place.
    Raises :class:`ManifestUnreadable`.
    """

    def __init__(
        self, start: str, blocks: Iterator[str], separator: str, path: ManifestFile, line: int
    ) -> None:
        self._path = path
        self._line = line
        first_end = _LINE_END.search(start)
        is_cr = first_end is not None and first_end[0] == "\r"
        self._row_end, self._other_end = ("\r", "\n") if is_cr else ("\n", "\r")
        self._has_marks = False
        self._whole: list[str] = []
        self._lines_of_rows = 0
        self._last_line = ""
        lines = self._lines(itertools.chain([start], blocks))
        self._records = csv.reader(lines, delimiter=separator, strict=True)
        self.quotes = 0
        self.lines = 0

    def __iter__(self) -> Iterator[bytes]:
        try:
            for _ in self._records:
                if self._row_end in self._last_line[-2:]:  # else the record may be part of a row
                    self._lines_of_rows = self._records.line_num
                if self._whole:
                    yield self._utf8(self._whole.pop())
        except csv.Error as error:
            raise ManifestUnreadable(self._path, self._explained(str(error))) from error
        yield from map(self._utf8, self._whole)

    def _lines(self, blocks: Iterator[str]) -> Iterator[str]:
        """Yields line by line. When the reader is at the end of a block, `_whole` is the rows in it."""
        unread, count = "", 0
        row: list[str] = []
        for block in blocks:
            lines = list(io.StringIO(unread + block, newline=""))
            # A line end may be cut between CR and LF.
            unread = lines.pop() if lines[-1][-1] != "\n" else ""
            for self._last_line in lines:
                yield self._last_line
            count += len(lines)
            row += lines
            if whole := len(row) - (count - self._lines_of_rows):
                self._whole.append("".join(row[:whole]))
                del row[:whole]
            if sum(map(len, row)) + len(unread) > MAX_ROW_BYTES:
                raise ManifestUnreadable(self._path, ROW_TOO_LONG)
        if unread:
            yield unread
        if row or unread:
            self._whole.append("".join([*row, unread]))

    def unmarked(self, text: str) -> str:
        """`text` of pyarrow, with the line ends that were marked."""
        return text.replace(_MARK, self._other_end) if self._has_marks else text

    def unmarked_column(self, column: ArrowColumn) -> ArrowColumn:
        """A column of pyarrow's, with the line ends that were marked."""
        if not self._has_marks:
            return column
        return pc.replace_substring(cast("pa.StringArray", column), _MARK, self._other_end)

    def _utf8(self, rows: str) -> bytes:
        """`rows` with a mark for each line end that is text; counts quotes and lines."""
        data = rows.encode()
        self.quotes += data.count(b'"')
        codes = np.frombuffer(data, np.uint8)
        ends = (codes == ord("\n")) | (codes == ord("\r"))
        self.lines += int(np.count_nonzero(~ends & np.concatenate(([True], ends[:-1]))))
        marked, marks = _OTHER_ENDS[self._other_end].subn(lambda ends: _MARK_UTF8 * len(ends[0]), data)
        self._has_marks |= marks > 0
        return marked

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
        blocks: RowBlocks,
        separator: str,
        names: list[str],
        header: list[str],
        width: int,
        layout: Layout = SUBMISSION_ROWS,
    ) -> None:
        self._path = path
        self._blocks = blocks
        self._layout = layout
        self._separator = separator
        self._named = len(header)
        self._names = [*layout.fields, *names]
        self._header = [*header, *[""] * width][:width]
        self.width = width
        self._id = header.index("submission_id")
        self._odd_rows: list[_OddRow] = []
        self._last_number = -1  # the first block begins with the header
        self._malformed = 0
        self.unnamed_cells = 0
        self.lines = 1 + sum(len(LINE_ENDS.findall(name)) for name in names)
        """How many lines of the file the header and the rows so far account for."""

    def __call__(self, row: pacsv.InvalidRow) -> Literal["skip", "error"]:
        # Without threads, pyarrow always knows the number of a row in its block.
        number = self._last_number + (row.number or 0)
        text = self._blocks.unmarked(row.text)
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
        self._odd_rows.append(_OddRow(number, len(lines), cells, shown, detail, swallows))
        return "skip" if self._malformed <= MAX_MALFORMED_ROWS else "error"

    def require_few_malformed(self) -> None:
        """Raises :class:`ManifestUnreadable` if the handler stopped reading after too many malformed rows."""
        require_few_malformed(self._path, self._malformed, MAX_MALFORMED_ROWS)

    def chunks(self, columns: Sequence[ArrowColumn]) -> Iterator[pa.Table]:
        """Yields the rows of a block: those with as many fields as the header, and then the others.

        `columns` has the former; the handler got the latter, with their numbers.
        """
        odd_rows, self._odd_rows = self._odd_rows, []
        first = self._last_number + 1 or 1
        numbers = np.arange(first, first + len(columns[0]) + len(odd_rows), dtype=np.int64)
        self._last_number = first + len(numbers) - 1
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
        columns = list(map(self._blocks.unmarked_column, columns))
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
