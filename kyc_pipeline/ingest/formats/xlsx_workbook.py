"""Opens a workbook with openpyxl, but with its shared strings as they are stored.

openpyxl removes each `x005F_` from them, also where it is no part of an escape.
"""

from typing import IO, Any, Final

from openpyxl.cell.text import Text
from openpyxl.reader.excel import ExcelReader
from openpyxl.xml.constants import SHARED_STRINGS, SHEET_MAIN_NS
from openpyxl.xml.functions import iterparse

_STRING: Final = f"{{{SHEET_MAIN_NS}}}si"


def open_workbook(file: IO[bytes]) -> Any:
    """openpyxl's workbook, which reads the rows of its sheets one by one. Close it."""
    reader = _Reader(file, read_only=True, keep_links=False)
    reader.read()
    return reader.wb


class _Reader(ExcelReader):  # type: ignore[misc]  # openpyxl has no types
    def read_strings(self) -> None:
        part = self.package.find(SHARED_STRINGS)
        if part is not None:
            with self.archive.open(part.PartName.removeprefix("/")) as source:
                for _, element in iterparse(source):
                    if element.tag == _STRING:
                        self.shared_strings.append(Text.from_tree(element).content)
                        element.clear()
