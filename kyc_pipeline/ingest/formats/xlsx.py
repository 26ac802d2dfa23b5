"""Reads Excel workbooks: one sheet with values, whose cells become text by the same rule as Parquet's.

openpyxl reads the cells, because it tells formulas and errors from empty cells; python-calamine does not.
"""

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any, Final

import pyarrow as pa

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.formats.columns import TAG_PREFIX, Layout
from kyc_pipeline.ingest.formats.size_limits import CHUNK_BYTES, CHUNK_ROWS, MAX_ROW_BYTES
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable
from kyc_pipeline.ingest.formats.xlsx_parts import check_parts
from kyc_pipeline.landing.zone import ManifestFile

# Excel writes a control character as `_x000D_`, and the first `_` of text that looks like that as `_x005F_`.
# Other tools do not escape: whether they mean a control character is open, and such a cell has no text.
_ESCAPED_UNDERSCORE: Final = "_x005F_"
_ESCAPES: Final = re.compile(r"_x(005F|00[01][0-9A-Fa-f])_")
_FIRST_DAY: Final = date(1900, 1, 1)
_AMBIGUOUS_DAY: Final = date(1900, 2, 28)
"""Excel has a 29 February 1900, which openpyxl takes for this day."""

Cells = Sequence[Any]
"""A row of openpyxl's cells."""


def read_xlsx(path: ManifestFile, ignored: Counter[str], layout: Layout) -> Iterator[pa.Table]:
    """Yields the chunks of a workbook's only sheet with values.

    Hidden sheets, rows and columns count like others. The first row with values is the header.
    """
    chunks = _chunks(path, ignored, layout)
    while True:
        with _refused_if_unreadable(path):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


@contextlib.contextmanager
def _refused_if_unreadable(path: ManifestFile) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # openpyxl's repeat values of cells
        try:
            yield
        except (KycError, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise ManifestUnreadable(
                path,
                f"is not a readable .xlsx file ({type(error).__name__}): "
                "save it as an Excel workbook without a password",
            ) from error


def _rows(workbook: Any, path: ManifestFile) -> Iterator[tuple[int, Cells]]:
    """The number and the cells of each row with a value. There is one sheet with values."""
    for sheet in workbook.worksheets:
        sheet.reset_dimensions()  # which some tools write wrongly
        number = 0
        try:
            for number, cells in enumerate(sheet.iter_rows(), 1):
                if any(map(_is_visible, cells)):
                    yield number, cells
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ManifestUnreadable(
                path,
                f"has a cell in row {number + 1} or below that cannot be read ({type(error).__name__}): "
                "enter its value again in Excel",
            ) from error


def _is_visible(cell: Any) -> bool:
    """Whether the cell makes its row more than a blank one: people do not see blanks."""
    return _is_filled(cell) and not (isinstance(cell.value, str) and cell.value.isspace())


def _is_filled(cell: Any) -> bool:
    return cell.value is not None and cell.value != ""


@dataclass
class _Rows:
    """Rows on their way to a chunk."""

    width: int
    columns: dict[int, str]
    layout: Layout

    def __post_init__(self) -> None:
        self.numbers: list[int] = []
        self.values: dict[str, list[str | None]] = {name: [] for name in self.columns.values()}
        self.malformed: list[str | None] = []
        self.size = 0

    def add(self, number: int, cells: Cells, path: ManifestFile) -> None:
        """Adds the row `number` of the file's data."""
        problem = None
        surplus = [index for index, cell in enumerate(cells) if index >= self.width and _is_visible(cell)]
        if surplus:
            problem = f"expected {self.width} fields, found {surplus[-1] + 1}"
        size = 0
        for index, name in self.columns.items():
            cell = cells[index] if index < len(cells) and _is_filled(cells[index]) else None
            text = _text(cell, name, self.layout) if cell is not None else None
            if cell is not None and text is None:
                problem = problem or _without_text(cell, name, self.layout)
            self.values[name].append(text)
            size += len(text or "")
        if size > MAX_ROW_BYTES:
            raise ManifestUnreadable(path, f"has a row of more than {MAX_ROW_BYTES} characters")
        self.numbers.append(number)
        self.malformed.append(problem)
        self.size += size

    def chunk(self) -> pa.Table:
        """The rows added so far."""
        columns = {name: pa.array(values, pa.string()) for name, values in self.values.items()}
        return self.layout.chunk_of(
            columns, pa.array(self.numbers, pa.int64()), pa.array(self.malformed, pa.string())
        )


def _chunks(path: ManifestFile, ignored: Counter[str], layout: Layout) -> Iterator[pa.Table]:
    # Here, since openpyxl takes a tenth of a second and few days have a workbook.
    from kyc_pipeline.ingest.formats.xlsx_workbook import open_workbook

    with path.open("rb") as file:
        sheets = check_parts(file, path)
        with contextlib.closing(open_workbook(file)) as workbook:
            if len(workbook.worksheets) > sheets:
                raise ManifestUnreadable(path, "names a sheet twice: save it in Excel")
            yield from _chunks_of(_rows(workbook, path), path, ignored, layout)


def _chunks_of(
    rows: Iterator[tuple[int, Cells]], path: ManifestFile, ignored: Counter[str], layout: Layout
) -> Iterator[pa.Table]:
    first, header = next(rows, (0, ()))
    if any(cell.data_type == "f" for cell in header):
        raise ManifestUnreadable(path, "names a column by a formula: paste its value")
    names = [layout.column_of(_unescaped(str(cell.value))) if _is_filled(cell) else "" for cell in header]
    while names and not names[-1]:
        names.pop()
    layout.check_header(names, path)
    used = {index: name for index, name in enumerate(names) if layout.is_used(name)}
    unnamed = [index for index, name in enumerate(names) if not name]
    pending, total, unnamed_cells = _Rows(len(names), used, layout), 0, 0
    for number, cells in rows:
        pending.add(number - first, cells, path)
        total += 1
        unnamed_cells += sum(_is_filled(cells[index]) for index in unnamed if index < len(cells))
        if len(pending.numbers) == CHUNK_ROWS or pending.size >= CHUNK_BYTES:
            yield pending.chunk()
            pending = _Rows(len(names), used, layout)
    if pending.numbers:
        yield pending.chunk()
    layout.count_unused(ignored, names, total, unnamed_cells)


def _text(cell: Any, name: str, layout: Layout) -> str | None:
    """The text of a cell with a value, or None if it has none: see the table in the README."""
    value = cell.value
    if isinstance(value, date):  # or a datetime
        if name == layout.time:
            return value.isoformat()
        is_tag = name.startswith(TAG_PREFIX)
        return value.isoformat()[:10] if is_tag and _is_day(value, cell.parent.parent.epoch) else None
    if name == layout.number and isinstance(value, int | float) and cell.data_type == "n":
        return repr(value)
    is_text = isinstance(value, str) and cell.data_type not in ("e", "f")
    has_control = is_text and any(escape != "005F" for escape in _ESCAPES.findall(value))
    return _unescaped(value) if is_text and not has_control else None


def _unescaped(text: str) -> str:
    return text.replace(_ESCAPED_UNDERSCORE, "_")


def _is_day(value: date, epoch: datetime) -> bool:
    """Whether a date, or a datetime, is a whole day of Excel's calendar, which begins at `epoch` or later."""
    day, moment = (value.date(), value.time()) if isinstance(value, datetime) else (value, time())
    return moment == time() and day >= max(epoch.date(), _FIRST_DAY) and day != _AMBIGUOUS_DAY


def _without_text(cell: Any, name: str, layout: Layout) -> str:
    if cell.data_type == "f":
        return f"{name if name in layout.fields else 'a tag'} has a formula: paste its value"
    return layout.must_be_text(name)
