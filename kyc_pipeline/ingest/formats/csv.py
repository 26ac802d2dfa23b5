"""Reads CSV: finds separator and columns in the first rows, and leaves the parsing to pyarrow."""

import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Final, cast

import pyarrow as pa
import pyarrow.csv as pacsv

from kyc_pipeline.ingest.formats.columns import Layout
from kyc_pipeline.ingest.formats.csv_line_ends import LineEnds
from kyc_pipeline.ingest.formats.csv_rows import LINE_ENDS, CsvRows, RowBlocks
from kyc_pipeline.ingest.formats.size_limits import CHUNK_ROWS
from kyc_pipeline.ingest.formats.text import count_line_ends, text_blocks
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable
from kyc_pipeline.landing.zone import ManifestFile

_SEPARATORS: Final = (",", ";", "\t", "|")
_SAVE_AS_UTF8: Final = "save it as UTF-8 (CSV UTF-8 in Excel), or set KYC_CSV_ENCODING"
_SEPARATOR_LINE: Final = re.compile(r'"?sep=.?"?[,;\t|]*[\r\n]+', re.IGNORECASE)
"""Excel's own first line, which names the separator. It is not data."""


def read_csv(
    path: ManifestFile, ignored: Counter[str], layout: Layout, code_page: str | None = None
) -> Iterator[pa.Table]:
    """Yields the chunks of a CSV. `code_page` is its encoding if it is neither UTF-8 nor UTF-16."""
    texts = text_blocks(path, code_page, _SAVE_AS_UTF8)
    whole = next(texts, "")
    start = whole.lstrip("\r\n")
    if separator_line := _SEPARATOR_LINE.match(start):
        start = start[separator_line.end() :]
    if not start.strip():
        raise ManifestUnreadable(path, "is empty: its first row must name the columns")
    line_ends = LineEnds(start)
    separator, names, width = _header(start, line_ends, path, layout)
    header = [layout.column_of(name) for name in names]
    layout.check_header(header, path)
    first_line = 1 + count_line_ends(whole.removesuffix(start))
    blocks = RowBlocks(start, texts, separator, line_ends, path, first_line)
    rows = CsvRows(path, line_ends, separator, names, header, width, layout)
    total = 0
    for chunk in _merged(_csv_chunks(blocks, rows, separator, path)):
        total += chunk.num_rows
        yield chunk
    _reconcile(blocks, rows, path)
    layout.count_unused(ignored, header, total, rows.unnamed_cells)


def _reconcile(blocks: RowBlocks, rows: CsvRows, path: ManifestFile) -> None:
    # An open quote swallows every row up to the next quote, so some rows were misread.
    if blocks.quotes % 2:
        raise ManifestUnreadable(path, 'has an odd number of quotes ("): close or double the stray one')
    if rows.lines != blocks.lines:
        raise ManifestUnreadable(
            path, f"has {blocks.lines} lines, but its rows have {rows.lines}: is a quote missing or stray?"
        )


def _csv_chunks(blocks: RowBlocks, rows: CsvRows, separator: str, path: ManifestFile) -> Iterator[pa.Table]:
    keys = [str(index) for index in range(rows.width)]
    parse_options = pacsv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=rows)
    convert_options = pacsv.ConvertOptions(
        column_types=dict.fromkeys(keys, pa.string()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )
    for index, block in enumerate(blocks):
        # A thread of Arrow's may hold the input, and with `open_csv` the handler, while Python ends. If that
        # is Python's memory, the process aborts.
        memory = pa.BufferOutputStream()
        memory.write(block)
        read_options = pacsv.ReadOptions(
            use_threads=False,  # only the serial reader knows row numbers
            block_size=len(block),
            column_names=keys,
            skip_rows_after_names=0 if index else 1,
        )
        try:
            table = pacsv.read_csv(
                cast("IO[bytes]", pa.BufferReader(memory.getvalue())),
                read_options,
                parse_options,
                convert_options,
            )
        except pa.ArrowInvalid as error:
            rows.require_few_malformed()
            raise ManifestUnreadable(path, "is not a valid CSV file") from error
        yield from rows.chunks([column.combine_chunks() for column in table.columns])


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


def _header(
    start: str, line_ends: LineEnds, path: ManifestFile, layout: Layout
) -> tuple[str, list[str], int]:
    """The separator, the column names, and how many fields a row has.

    The separator is the one that gives the most known names. Often every row has more cells than the header,
    all empty, or lacks cells under its last names, which are empty: the first row of data decides.
    """
    readings = []
    marked = line_ends.marked(start)
    for separator in _SEPARATORS:
        rows = filter(None, csv.reader(io.StringIO(marked, newline=""), delimiter=separator))
        try:
            readings.append((separator, list(map(line_ends.unmarked, next(rows, []))), rows))
        except csv.Error as error:
            raise ManifestUnreadable(path, "has no readable header row") from error
    separator, names, rows = max(
        readings,
        key=lambda reading: (
            sum(layout.is_used(layout.column_of(name)) for name in reading[1]),
            len(reading[1]),
        ),
    )
    first: list[str] = []
    with contextlib.suppress(csv.Error):
        first = next(rows, [])
    differ_in_empty_cells = first and not any([*names[len(first) :], *first[len(names) :]])
    is_one_line = not any(map(LINE_ENDS.search, first))
    return separator, names, len(first) if differ_in_empty_cells and is_one_line else len(names)
