"""Excel workbooks that unpack to very much are refused before openpyxl loads them."""

import io
import subprocess
import sys
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from kyc_pipeline.ingest.formats import xlsx_parts
from kyc_pipeline.ingest.formats.columns import SUBMISSION_ROWS
from kyc_pipeline.ingest.formats.xlsx import read_xlsx

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
TYPES = "[Content_Types].xml"
STRINGS_TYPE = (
    '<Override PartName="/xl/sharedStrings.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"/>'
)
LISTS = "<dataValidations></dataValidations><hyperlinks></hyperlinks>"
SHEET, STYLES, STRINGS = "xl/worksheets/sheet1.xml", "xl/styles.xml", "xl/sharedStrings.xml"
LIMIT_BYTES = 500_000_000


def numbered(text: str) -> Callable[[int], str]:
    """Makes so many copies of an element, each with its number."""
    return lambda count: "".join(text.replace("#", str(number)) for number in range(10, 10 + count))


VALIDATION = '<dataValidation type="whole" sqref="A#"><formula1>#</formula1></dataValidation>'
KINDS: dict[str, tuple[str, str, Callable[[int], str]]] = {
    "strings": (STRINGS, "</sst>", numbered("<si><t># 😀 #</t></si>")),
    "empty strings": (STRINGS, "</sst>", numbered("<si/>")),
    "rows": (SHEET, "</sheetData>", numbered('<row r="#"/>')),
    "attributes of rows": (SHEET, "</sheetData>", numbered('<row r="#" ht="12.5" hidden="#"/>')),
    "links": (SHEET, "</hyperlinks>", numbered('<hyperlink ref="A#" location="b#"/>')),
    "validations": (SHEET, "</dataValidations>", numbered(VALIDATION)),
    "unknown elements": (SHEET, "</hyperlinks>", numbered('<a b="#"/>')),
    "fonts": (STYLES, "</fonts>", numbered('<font><sz val="#"/></font>')),
    "borders": (STYLES, "</borders>", numbered('<border><left style="thin"/></border>')),
    "formats": (STYLES, "</cellXfs>", numbered('<xf numFmtId="#"><alignment wrapText="1"/></xf>')),
    "parts": (TYPES, "</Types>", numbered('<Override PartName="/a#" ContentType="b"/>')),
}


def workbook(path: Path, kind: str, count: int) -> Path:
    """A workbook with one row, and `count` elements of a kind."""
    book = openpyxl.Workbook()
    for cells in (["submission_id", "id_file", "selfie_file"], ["A1", "id.jpg", "selfie.png"]):
        book.worksheets[0].append(cells)
    content = io.BytesIO()
    book.save(content)
    part, end, make = KINDS[kind]
    with zipfile.ZipFile(content) as old:
        parts = {name: old.read(name).decode() for name in old.namelist()}
    parts[STRINGS] = f'<sst xmlns="{MAIN}"></sst>'
    parts[TYPES] = parts[TYPES].replace("</Types>", f"{STRINGS_TYPE}</Types>")
    parts[SHEET] = parts[SHEET].replace("</sheetData>", f"</sheetData>{LISTS}")
    assert end in parts[part]
    parts[part] = parts[part].replace(end, make(count) + end)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name, text in parts.items():
            new.writestr(name, text)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_element_takes_more_memory_than_is_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    estimates: list[int] = []
    keep = xlsx_parts._Memory.keep

    def watched_keep(memory: Any, size: int) -> None:
        estimates.append(size)
        keep(memory, size)

    monkeypatch.setattr(xlsx_parts._Memory, "keep", watched_keep)

    def measured(count: int) -> tuple[int, int]:
        """The traced peak of reading, and the estimate."""
        path = workbook(tmp_path / f"{count}.xlsx", kind, count)
        estimates.clear()
        tracemalloc.start()
        try:
            assert sum(chunk.num_rows for chunk in read_xlsx(path, Counter(), SUBMISSION_ROWS)) == 1
            return tracemalloc.get_traced_memory()[1], sum(estimates)
        finally:
            tracemalloc.stop()

    measured(1)  # imports
    # Other work of the process can only add to a measurement.
    few, many = (min(measured(count) for _ in range(3)) for count in (500, 2_000))
    assert many[0] - few[0] < many[1] - few[1]


HOSTILE = {"empty strings": 2_300_000, "links": 330_000, "attributes of rows": 480_000}
READ = """
import sys
from collections import Counter
from pathlib import Path
from bench.peak_memory import peak_bytes
from kyc_pipeline.ingest.formats import read_manifest
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable
for path in map(Path, sys.argv[1:]):
    try:
        list(read_manifest(path, Counter()))
    except ManifestUnreadable as error:
        print(error)
print(peak_bytes())
"""


def test_hostile_workbooks_take_little_memory(tmp_path: Path) -> None:
    paths = [workbook(tmp_path / f"{n}.xlsx", kind, count) for n, (kind, count) in enumerate(HOSTILE.items())]
    *refusals, peak = subprocess.check_output([sys.executable, "-c", READ, *paths], text=True).splitlines()
    assert len(refusals) == len(paths)
    assert all("has too many strings, styles or other elements" in refusal for refusal in refusals)
    assert int(peak) < LIMIT_BYTES
