"""Damaged manifests of every format: our own error, or each row that was not damaged as it was."""

import contextlib
import gzip
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kyc_pipeline.erasure.landing_zone import LandingZone
from kyc_pipeline.ingest.formats import read_manifest
from kyc_pipeline.ingest.formats.columns import MALFORMED, ROW
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable
from kyc_pipeline.ingest.landing_options import LandingOptions
from tests.effort import tries

NAMES = ("submission_id", "id_file", "selfie_file", "tag.k", "note")
CELLS = [
    (f"id-{n}-{n * 7919 % 1000:03}", "id.jpg", "selfie.png", f"Ünal {n}, Co", f'5" {n}') for n in range(8)
]
ANY_ROWS = settings(
    max_examples=tries(150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

Form = tuple[bytes, Sequence[bytes], bytes, Callable[[bytes], bytes]]
"""What comes before the rows, the rows, what comes after them, and how these bytes become a file."""


def as_csv(separator: str, always: bool, end: bytes) -> Form:
    def line(cells: Sequence[str]) -> bytes:
        quoted = [
            '"' + cell.replace('"', '""') + '"' if always or {separator, '"'} & {*cell} else cell
            for cell in cells
        ]
        return separator.join(quoted).encode()

    return line(NAMES) + end, [line(cells) + end for cells in CELLS], b"", bytes


def as_jsonl() -> Form:
    rows = [json.dumps(dict(zip(NAMES, cells, strict=True)), ensure_ascii=False) for cells in CELLS]
    return b"", [f"{row}\n".encode() for row in rows], b"", bytes


def as_xlsx() -> Form:
    def row(number: int, cells: Sequence[str]) -> bytes:
        texts = "".join(
            f'<c r="{"ABCDE"[index]}{number}" t="inlineStr"><is><t>{cell}</t></is></c>'
            for index, cell in enumerate(cells)
        )
        return f'<row r="{number}">{texts}</row>'.encode()

    empty = io.BytesIO()
    openpyxl.Workbook().save(empty)

    def pack(sheet: bytes) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(empty) as old, zipfile.ZipFile(target, "w") as new:
            for name in old.namelist():
                new.writestr(name, sheet if name == "xl/worksheets/sheet1.xml" else old.read(name))
        return target.getvalue()

    start = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
    rows = [row(number, cells) for number, cells in enumerate(CELLS, 2)]
    return start + row(1, NAMES), rows, b"</sheetData></worksheet>", pack


FORMS: dict[str, Form] = {
    "a.csv": as_csv(",", False, b"\n"),
    "b.csv": as_csv(";", True, b"\r\n"),
    "c.tsv": as_csv("\t", False, b"\r"),
    "d.jsonl": as_jsonl(),
    "e.xlsx": as_xlsx(),
}
MARKS = rb"""" "" ", ," , ; \ \" { } [ \N NaN < & </row> </c> <v>7</v> <f>1</f>""".split()
ENDS = [b"\n", b'"\n', b"\r", b"\t", b"\0", b"\xef\xbb\xbf", b"\xff\xfe"]
NEW = st.one_of(st.binary(max_size=4), st.sampled_from(MARKS + ENDS))
EDIT = st.tuples(st.integers(0, len(CELLS) - 1), st.integers(0, 400), st.integers(0, 3), NEW)


def read(path: Path, code_page: str | None = None) -> list[dict[str, Any]] | None:
    """The rows, or None if the file is refused."""
    refusal = ""
    try:
        rows = [row for chunk in read_manifest(path, Counter(), code_page) for row in chunk.to_pylist()]
    except ManifestUnreadable as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith(f"manifests/{path.parent.name}/{path.name}: ")
        assert refusal.isprintable()
        return None
    numbers = [row[ROW] for row in rows]
    assert len(set(numbers)) == len(numbers)
    assert all(number > 0 for number in numbers)
    return rows


@pytest.mark.parametrize("name", FORMS)
@ANY_ROWS
@given(edits=st.lists(EDIT, min_size=1, max_size=3))
@example(edits=[(1, 400, 0, b'"'), (5, 400, 0, b'"')])
@example(edits=[(1, 20, 0, b',"'), (2, 20, 0, b'"')])
@example(edits=[(0, 0, 0, b'"'), (0, 44, 2, b'"')])
@example(edits=[(0, 0, 0, b"\xfe\xff")])
@example(edits=[(0, 0, 0, b"\r")])
@example(edits=[(0, 0, 0, b"\xff\xfe"), (0, 9, 0, b"\0\0\0\0"), (1, 9, 0, b"\0\0\0")])
def test_damage_to_one_row_touches_no_other_or_refuses_the_file(
    tmp_path: Path, name: str, edits: list[tuple[int, int, int, bytes]]
) -> None:
    start, rows, end, pack = FORMS[name]
    damaged = dict(enumerate(rows))
    for index, place, length, new in edits:
        row = damaged[index]
        body = len(row.rstrip(b"\r\n"))  # or a row becomes part of the next one
        at = place % (body + 1)
        damaged[index] = row[:at] + new + row[min(at + length, body) :]
    path = tmp_path / name
    path.write_bytes(pack(start + b"".join(damaged.values()) + end))
    found = read(path)
    if found is not None:
        sound = {tuple(row.get(column) for column in NAMES[:4]) for row in found if row[MALFORMED] is None}
        others = {CELLS[index][:4] for index in damaged if damaged[index] == rows[index]}
        assert others <= sound


def test_undamaged_rows_are_all_read(tmp_path: Path) -> None:
    """Or the test above would accept that each file is refused."""
    for name, (start, rows, end, pack) in FORMS.items():
        (tmp_path / name).write_bytes(pack(start + b"".join(rows) + end))
        found = read(tmp_path / name)
        assert found is not None
        assert [tuple(row[column] for column in NAMES[:4]) for row in found] == [cells[:4] for cells in CELLS]


def as_parquet() -> bytes:
    target = io.BytesIO()
    pq.write_table(
        pa.table(dict(zip(NAMES, zip(*CELLS, strict=True), strict=True))), target, row_group_size=3
    )
    return target.getvalue()


def whole(name: str) -> bytes:
    start, rows, end, pack = FORMS[name]
    return pack(start + b"".join(rows) + end)


WHOLE = {
    "a.csv": whole("a.csv"),
    "a.csv.gz": gzip.compress(whole("b.csv"), mtime=0),
    "a.jsonl": whole("d.jsonl"),
    "a.jsonl.gz": gzip.compress(whole("d.jsonl"), mtime=0),
    "a.parquet": as_parquet(),
    "a.xlsx": whole("e.xlsx"),
}
ANYWHERE = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 3), NEW), max_size=5)


@pytest.mark.parametrize("name", WHOLE)
@ANY_ROWS
@given(edits=ANYWHERE, code_page=st.sampled_from([None, "windows-1252", "windows-1255"]))
def test_damage_anywhere_raises_no_error_but_ours(
    tmp_path: Path, name: str, edits: list[tuple[int, int, bytes]], code_page: str | None
) -> None:
    content = bytearray(WHOLE[name])
    for place, length, new in edits:
        at = place % (len(content) + 1)
        content[at : at + length] = new
    path = tmp_path / name
    path.write_bytes(content)
    read(path, code_page)


@pytest.mark.parametrize("name", WHOLE)
@settings(ANY_ROWS, max_examples=tries(50))
@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
def test_any_bytes_raise_no_error_but_ours(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    read(tmp_path / name)


@settings(ANY_ROWS, max_examples=tries(12))
@given(name=st.sampled_from(sorted(WHOLE)), edits=ANYWHERE)
def test_a_damaged_day_leaves_the_next_one_and_erasures_alone(
    make_zone: Callable[[], Any], name: str, edits: list[tuple[int, int, bytes]]
) -> None:
    content = bytearray(WHOLE[name])
    for place, length, new in edits:
        at = place % (len(content) + 1)
        content[at : at + length] = new
    zone = make_zone()
    zone.manifest(name, bytes(content))
    next_day = "2024-09-02"
    zone.rows({"submission_id": "N1"}, {"submission_id": "N2", "id_file": "lost.jpg"}, day=next_day)
    with contextlib.suppress(ManifestUnreadable):
        zone.ingest(options=LandingOptions(csv_encoding="windows-1252"))  # the fixture compares the counts
    zone.ingest(next_day)
    assert (zone.ids(next_day), zone.reasons(next_day)) == (["N1"], [(2, "file_not_found")])
    rows = [row.row for row in LandingZone(zone.landing).rows() if row.date == next_day]
    assert rows == [1, 2]
