"""Looks at the parts of an Excel workbook, in bounded memory, before a library unpacks them.

openpyxl believes what a sheet says of its own size, and passes over rows that are out of order and values
where it does not look. It reads rows and shared strings one by one, but keeps the strings, the attributes of
the rows, and an object for every other element. What it will keep is estimated, and refused above
:data:`MAX_WORKBOOK_MEMORY`.
"""

import functools
import re
import zipfile
from typing import IO, Final
from xml.parsers import expat

from kyc_pipeline.ingest.formats.size_limits import (
    BLOCK_BYTES,
    MAX_ROW_BYTES,
    MAX_WORKBOOK_BYTES,
    MAX_WORKBOOK_CELLS,
    MAX_WORKBOOK_MEMORY,
    MAX_WORKBOOK_PARTS,
)
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable
from kyc_pipeline.landing.zone import ManifestFile

_MAIN: Final = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_STRICT: Final = "http://purl.oclc.org/ooxml/"
_UNITS: Final = {f"{_MAIN} worksheet": f"{_MAIN} row", f"{_MAIN} sst": f"{_MAIN} si"}
"""By the root of a part: the elements that openpyxl reads one by one."""
_ROWS: Final = f"{_MAIN} sheetData"
_STRING: Final = frozenset({"t", "r", "rPh", "phoneticPr"})
_INLINE: Final = "c inlineStr"
_CHILDREN: Final = {
    "row": {"c", "extLst"},
    "c": {"f", "v", "extLst"},
    _INLINE: {"f", "v", "is", "extLst"},
    "is": _STRING,
    "si": _STRING,
    "r": {"rPr", "t"},
    "rPh": {"t"},
}
"""By element: those that openpyxl reads in it, or may pass over. An extension is the last."""
_REPEATED: Final = frozenset({"c", "r", "rPh"})
"""Of all others, openpyxl reads only one."""
_OPAQUE: Final = frozenset({"extLst", "rPr"})
"""Elements that may contain anything: no value is in them."""
_WITH_TEXT: Final = _OPAQUE | {"f", "v", "t"}
_READ_WHOLE: Final = re.compile(r"\[Content_Types\]\.xml|docProps/.*|xl/(workbook|styles)\.xml|.*\.rels")
"""Parts that openpyxl reads at once, whatever their root; so is the main part, which the first one names."""
_ENTRY: Final = b"PK\1\2"
"""Begins each entry of a zip's directory."""
_POSITION: Final = re.compile(r"([A-Z]{1,3})([0-9]{1,7})")
_LAST_ROW: Final = 1_048_576
_LAST_COLUMN: Final = 16_384
_OBJECT_BYTES: Final = 1000
_ROW_BYTES: Final = 100
_ATTRIBUTE_BYTES: Final = 150
_STRING_BYTES: Final = 130
_CHARACTER_BYTES: Final = 4
"""Upper bounds of what an element, a row, one of its attributes, a string and a byte of its XML take."""
_MAX_ELEMENTS: Final = 100_000
"""In a row or string. A row of Excel's last column has half as many."""
_PIECE_BYTES: Final = 4 * MAX_ROW_BYTES
"""Longest row or string, with its tags. Outside of these, the longest text or tag."""


def check_parts(file: IO[bytes], path: ManifestFile) -> int:
    """The number of sheets, of which one has values.

    Raises :class:`ManifestUnreadable` if the file is too large or does not have one plain sheet.
    """
    if _entries(file) > MAX_WORKBOOK_PARTS:
        raise _too_large(path)
    with zipfile.ZipFile(file) as archive:
        return _check_archive(archive, path)


def _entries(file: IO[bytes]) -> int:
    """At least the number of entries in a zip's directory, which zipfile loads whole."""
    found, end = 0, b""
    while block := file.read(BLOCK_BYTES):
        found += (end + block).count(_ENTRY)
        end = block[1 - len(_ENTRY) :]
    return found


def _too_large(path: ManifestFile) -> ManifestUnreadable:
    return ManifestUnreadable(
        path,
        f"has more than {MAX_WORKBOOK_BYTES} bytes unpacked or {MAX_WORKBOOK_PARTS} parts: "
        "deliver it as CSV or Parquet",
    )


def _check_archive(archive: zipfile.ZipFile, path: ManifestFile) -> int:
    parts = sorted(archive.infolist(), key=lambda part: part.filename != "[Content_Types].xml")
    # zipfile unpacks no more of a part than the size that it declares.
    size = sum(part.file_size + len(part.extra) + len(part.comment) for part in parts)
    if len(parts) > MAX_WORKBOOK_PARTS or size > MAX_WORKBOOK_BYTES:
        raise _too_large(path)
    memory = _Memory(path)
    outlines: list[_Outline] = []
    main: set[str] = set()
    for part in parts:
        is_whole = part.filename in main or _READ_WHOLE.fullmatch(part.filename) is not None
        outline = _Outline(path, memory, is_whole=is_whole)
        with archive.open(part) as source:
            try:
                outline.read(source)
            except expat.ExpatError:
                if part.filename.lower().endswith(".xml"):
                    raise
        outlines.append(outline)
        main |= outline.main_parts
    sheets = sum(outline.is_sheet for outline in outlines)
    if not sheets:
        raise ManifestUnreadable(path, "is not an Excel workbook by its content: save it as one (*.xlsx)")
    filled = sum(outline.has_values for outline in outlines)
    if filled != 1:
        raise ManifestUnreadable(
            path,
            f"has {filled} sheets with values, hidden ones included: deliver each sheet as its own file"
            if filled
            else "is empty: its first row must name the columns",
        )
    return sheets


class _Memory:
    """The bytes that openpyxl will keep, by the estimate so far."""

    def __init__(self, path: ManifestFile) -> None:
        self._path = path
        self._bytes = 0

    def keep(self, size: int) -> None:
        self._bytes += size
        if self._bytes > MAX_WORKBOOK_MEMORY:
            raise ManifestUnreadable(
                self._path, "has too many strings, styles or other elements: deliver it as CSV or Parquet"
            )


class _Outline:
    """Where the cells of a sheet are, and how much of any part openpyxl will keep."""

    def __init__(self, path: ManifestFile, memory: _Memory, *, is_whole: bool) -> None:
        self._path = path
        self._memory = memory
        self._units = {} if is_whole else _UNITS
        self._unit: str | None = None
        self._open: list[tuple[str, set[str]]] = []
        """The elements from the row or string to the current one: what each is, and its children so far."""
        self._is_among_rows = False
        self._elements = 0
        """In this row or string."""
        self._piece_at = 0
        self._root = ""
        self._row = self._column = self._cells = 0
        self.has_values = False
        """Whether the part is a sheet with values."""
        self.main_parts: set[str] = set()
        """The names of workbooks, if the part is the list of content types."""

    @property
    def is_sheet(self) -> bool:
        return self._root.endswith(" worksheet")

    def read(self, source: IO[bytes]) -> None:
        """Reads an XML part.

        Raises :class:`ManifestUnreadable` if it has merged cells, rows or cells that are not in order, values
        where openpyxl does not look for them, or too much of anything.
        """
        self._parser = parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        size = 0
        while block := source.read(BLOCK_BYTES):
            parser.Parse(block)
            size += len(block)
            if size - self._piece_at > _PIECE_BYTES:
                raise ManifestUnreadable(
                    self._path, f"has a row, a text or a tag of more than {_PIECE_BYTES} bytes"
                )

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition(" ")[2]
        if not self._root:
            if tag.startswith(_STRICT):
                raise ManifestUnreadable(
                    self._path, "is a Strict Open XML file: save it as an Excel workbook (*.xlsx)"
                )
            self._root = tag
            self._unit = self._units.get(tag)
        elif self._open:
            self._start_in_unit(tag, name, attributes)
        else:
            self._piece_at = self._parser.CurrentByteIndex
            if tag == self._unit:
                self._open, self._elements = [(name, set())], 0
                self._start_unit(name, attributes)
            elif self._is_among_rows:
                raise self._misplaced()
            elif name == "mergeCell":
                raise ManifestUnreadable(self._path, "has merged cells: unmerge them and fill each cell")
            elif name == "Relationship" and "chartsheet" in attributes.get("Type", ""):
                raise ManifestUnreadable(self._path, "has a chart sheet: delete it")
            else:
                self._memory.keep(_OBJECT_BYTES)
                self._is_among_rows = self.is_sheet and tag == _ROWS
                if name == "Override" and attributes.get("ContentType", "").endswith("main+xml"):
                    self.main_parts.add(attributes.get("PartName", "").removeprefix("/"))

    def _end(self, _: str) -> None:
        if self._open:
            self._open.pop()
            if not self._open:
                end = self._parser.CurrentByteIndex
                if not self.is_sheet:
                    self._memory.keep(_STRING_BYTES + _CHARACTER_BYTES * (end - self._piece_at))
                self._piece_at = end
        else:
            self._is_among_rows = False

    def _characters(self, text: str) -> None:
        is_read = self._open[-1][0] in _WITH_TEXT if self._open else not self._is_among_rows
        if not is_read and not text.isspace():
            raise self._misplaced()

    def _misplaced(self) -> ManifestUnreadable:
        place = (
            f"{'in' if self._open else 'after'} row {self._row}" if self.is_sheet else "in a shared string"
        )
        return ManifestUnreadable(
            self._path,
            f"has an element or a value {place} where Excel does not write it: "
            "check it in Excel, and save it there",
        )

    def _start_unit(self, name: str, attributes: dict[str, str]) -> None:
        if name == "row":
            self._move_to_row(int(attributes.get("r", self._row + 1)))
            is_kept = attributes.keys() - {"r", "spans"}
            self._memory.keep(_ROW_BYTES + _ATTRIBUTE_BYTES * (len(attributes) + 1 if is_kept else 0))

    def _start_in_unit(self, tag: str, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > _MAX_ELEMENTS:
            raise ManifestUnreadable(
                self._path, f"has a row or a string of more than {_MAX_ELEMENTS} elements"
            )
        parent, seen = self._open[-1]
        if parent in _OPAQUE:
            self._open.append((parent, seen))
            return
        is_surplus = "extLst" in seen or (name in seen and name not in _REPEATED)
        if tag != f"{_MAIN} {name}" or name not in _CHILDREN.get(parent, ()) or is_surplus:
            raise self._misplaced()
        seen.add(name)
        kind = name
        if name == "c":
            self._move_to_cell(attributes.get("r"))
            if attributes.get("t") == "inlineStr":
                kind = _INLINE
        elif name in ("v", "is", "f"):
            self.has_values = True
            if parent == _INLINE and name == "v":
                kind = "v without text"
        self._open.append((kind, set()))

    def _move_to_row(self, row: int) -> None:
        if row <= self._row:
            raise ManifestUnreadable(self._path, f"has row {row} after row {self._row}: save it in Excel")
        if row > _LAST_ROW:  # openpyxl makes up the rows before it
            raise ManifestUnreadable(
                self._path, f"has row {row}, but Excel's last is {_LAST_ROW}: deliver it as CSV or Parquet"
            )
        self._row, self._column = row, 0

    def _move_to_cell(self, position: str | None) -> None:
        column, row = self._column + 1, self._row
        if position is not None:
            found = _POSITION.fullmatch(position)
            column, row = (_column_number(found[1]), int(found[2])) if found else (0, 0)
        if not self._column < column <= _LAST_COLUMN or row != self._row:
            raise ManifestUnreadable(
                self._path, f"has a cell in the wrong place in row {self._row}: save it in Excel"
            )
        self._cells += column - self._column
        self._column = column
        if self._cells > MAX_WORKBOOK_CELLS:
            raise ManifestUnreadable(
                self._path, f"has more than {MAX_WORKBOOK_CELLS} cells: deliver it as CSV or Parquet"
            )

    def _refuse_doctype(self, *_: object) -> None:
        raise ManifestUnreadable(self._path, "has a document type declaration, which Excel does not write")


def _column_number(letters: str) -> int:
    return functools.reduce(lambda number, letter: 26 * number + ord(letter) - ord("A") + 1, letters, 0)
