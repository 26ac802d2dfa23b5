"""Excel workbooks as manifests: one rule for cells and sheets, and limits on what is unpacked."""

import base64
import datetime as dt
import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import openpyxl
import pytest
from openpyxl.utils.datetime import CALENDAR_MAC_1904

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.formats import read_manifest

HEADER = ["submission_id", "id_file", "selfie_file", "tags", "tag.k", "submitted_at", "note"]
SHEET = "xl/worksheets/sheet1.xml"
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
TOO_MUCH = "has too many strings, styles or other elements: deliver it as CSV or Parquet"


def row(submission_id: Any = "A1", **cells: Any) -> list[Any]:
    good = {"submission_id": submission_id, "id_file": "id.jpg", "selfie_file": "selfie.png"}
    return [
        (good | {name.replace("tag_", "tag."): value for name, value in cells.items()}).get(n) for n in HEADER
    ]


def workbook(*rows: list[Any], edit: Callable[[Any], object] = lambda book: None) -> bytes:
    book = openpyxl.Workbook()
    for cells in rows or (HEADER, row()):
        book.worksheets[0].append(cells)
    edit(book)
    target = io.BytesIO()
    book.save(target)
    return target.getvalue()


PLAIN = workbook(HEADER, row("A1"), row("A2"), row("A3"))


def repacked(content: bytes, parts: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The workbook with other or more parts."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in dict.fromkeys([*old.namelist(), *parts]):
            new.writestr(name, parts[name] if name in parts else old.read(name))
    return target.getvalue()


def with_part(pattern: str, replacement: str, content: bytes = PLAIN, part: str = SHEET) -> bytes:
    """The workbook with a change in the XML of a part."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        text = archive.read(part).decode()
    changed = re.sub(pattern, replacement, text, count=1, flags=re.DOTALL)
    assert changed != text
    return repacked(content, {part: changed.encode()})


def strings(items: str) -> bytes:
    """The part of shared strings."""
    return f'<sst xmlns="{MAIN}">{items}</sst>'.encode()


STRINGS_TYPE = (
    '<Override PartName="/xl/sharedStrings.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"/>'
)


def with_strings(items: str, content: bytes = PLAIN) -> bytes:
    """The workbook with these shared strings only."""
    listed = with_part("</Types>", f"{STRINGS_TYPE}</Types>", content, "[Content_Types].xml")
    return repacked(listed, {"xl/sharedStrings.xml": strings(items)})


CELLS: list[tuple[str, dict[str, Any], str | None]] = [
    ("text", {"tag_k": "v"}, None),
    ("text of digits", {"tag_k": "0012"}, None),
    ("text of several lines", {"tag_k": "a\nb"}, None),
    ("JSON", {"tags": '{"k": "v"}'}, None),
    ("date", {"tag_k": dt.date(1990, 1, 2)}, None),
    ("time as text", {"submitted_at": "2024-09-01T10:00:00Z"}, None),
    ("a number in an unused column", {"note": 12}, None),
    ("a formula in an unused column", {"note": "=1/0"}, None),
    ("a number", {"tag_k": 12}, "a tag must be text"),
    ("a number as id", {"submission_id": 12}, "submission_id must be text"),
    ("a fraction", {"tag_k": 1.5}, "a tag must be text"),
    ("a truth value", {"tag_k": True}, "a tag must be text"),
    ("an error", {"tag_k": "#N/A"}, "a tag must be text"),
    ("a time of day", {"tag_k": dt.time(10)}, "a tag must be text"),
    ("date and time", {"tag_k": dt.datetime(1990, 1, 2, 3)}, "a tag must be text"),
    ("a date as id", {"submission_id": dt.date(1990, 1, 2)}, "submission_id must be text"),
    ("a date as tags", {"tags": dt.date(1990, 1, 2)}, "tags must be text"),
    ("a formula", {"tag_k": '="a"&"b"'}, "a tag has a formula: paste its value"),
    ("an escaped control character", {"tag_k": "a_x000D_\nb"}, "a tag must be text"),
    (
        "time without an offset",
        {"submitted_at": dt.datetime(2024, 9, 1)},
        "submitted_at must be ISO 8601 with",
    ),
]


def test_each_type_of_cell_has_one_rule(zone: Any) -> None:
    rows = [row(**{"submission_id": f"A{n}", **cells}) for n, (_, cells, _) in enumerate(CELLS, 1)]
    zone.manifest("a.xlsx", workbook(HEADER, *rows))
    assert zone.ingest().ignored_columns == {"note": len(CELLS)}
    details = {r["manifest_row"]: r["detail"] for r in zone.rejected()}
    wrong = {
        name: details.get(n)
        for n, (name, _, detail) in enumerate(CELLS, 1)
        if not (details.get(n) or "").startswith(detail or "") or (n in details) != (detail is not None)
    }
    assert wrong == {}
    tags = {r["submission_id"]: dict(r["tags"]) for r in zone.accepted()}
    assert [tags[f"A{n}"].get("k") for n in range(1, 6)] == ["v", "0012", "a\nb", "v", "1990-01-02"]
    assert zone.accepted()[5]["submitted_at"] == dt.datetime(2024, 9, 1, 10, tzinfo=dt.UTC)


def test_empty_rows_are_skipped_and_rows_keep_their_place_below_the_header(zone: Any) -> None:
    rows = [[], HEADER, row("A1"), [" ", "\xa0", "\n"], ["", None], row("A4"), [*row("A5"), None, "stray"]]
    zone.manifest("a.xlsx", workbook(*rows))
    assert zone.ingest().received == 3
    assert [(r["submission_id"], r["manifest_row"]) for r in zone.accepted()] == [("A1", 1), ("A4", 4)]
    assert [(r["submission_id"], r["manifest_row"], r["detail"]) for r in zone.rejected()] == [
        ("A5", 5, "expected 7 fields, found 9")
    ]


def test_values_below_a_header_without_a_name_count_as_an_ignored_column(zone: Any) -> None:
    """As in a CSV: each cell with a value counts."""
    header: list[Any] = ["", "submission_id", None, "id_file", "selfie_file"]
    rows: list[list[Any]] = [
        ["x", "A1", "y", "id.jpg", "selfie.png"],
        ["", "A2", "z", "id.jpg", "selfie.png"],
        [None, "A3"],
    ]
    zone.manifest("a.xlsx", workbook(header, *rows))
    assert zone.ingest().ignored_columns == {"": 3}
    lines = "\n".join(",".join(cell or "" for cell in cells) for cells in (header, *rows))
    zone.manifest("a.xlsx", b"").unlink()
    zone.manifest("a.csv", lines.encode())
    assert zone.ingest().ignored_columns == {"": 3}


def hide(book: Any) -> None:
    book.create_sheet("lists").sheet_state = "hidden"
    book.worksheets[0].row_dimensions[2].hidden = True
    book.worksheets[0].column_dimensions["B"].hidden = True


@pytest.mark.parametrize(
    "content",
    [
        workbook(HEADER, row("A1"), row("A2"), row("A3"), edit=hide),
        with_part('<dimension ref="[^"]*" */>', '<dimension ref="A1"/>'),
        with_part('<dimension ref="[^"]*" */>', ""),
        with_part(' r="[A-Z]+[0-9]+"', "", with_part(' r="[A-Z]+[0-9]+"', "")),
    ],
    ids=["hidden", "wrong dimension", "no dimension", "cells without position"],
)
def test_every_row_is_read(zone: Any, content: bytes) -> None:
    zone.manifest("a.xlsx", content)
    zone.ingest()
    assert zone.ids() == ["A1", "A2", "A3"]


def second_sheet(book: Any) -> None:
    sheet = book.create_sheet("lists")
    sheet["A1"] = "x"
    sheet.sheet_state = "hidden"


REFUSED: list[tuple[str, bytes | Callable[[], bytes], str]] = [
    ("two sheets", workbook(edit=second_sheet), "has 2 sheets with values, hidden ones included"),
    ("no value", workbook([]), "is empty: its first row must name the columns"),
    (
        "no header",
        workbook(row()),
        "has no column submission_id, id_file, selfie_file: .* names none of the fields, but 3 others",
    ),
    ("merged cells", workbook(edit=lambda b: b.worksheets[0].merge_cells("E2:E3")), "has merged cells"),
    ("a row twice", with_part('<row r="3"', '<row r="2"'), "has row 2 after row 2"),
    (
        "an OpenDocument sheet",
        repacked(base64.b64decode("UEsFBgAAAAAAAAAAAAAAAAAAAAAAAA=="), {"content.xml": b"<office/>"}),
        "is not an Excel workbook by its content",
    ),
    ("rows out of order", with_part('<row r="4"', '<row r="1"'), "has row 1 after row 3"),
    (
        "more styles than Excel has",
        lambda: with_part("</cellXfs>", "<xf/>" * 320_001 + "</cellXfs>", part="xl/styles.xml"),
        TOO_MUCH,
    ),
    ("a column that a formula names", workbook(["=1", *HEADER], row()), "names a column by a formula"),
    (
        "a text of many fonts",
        lambda: repacked(workbook(), {"xl/sharedStrings.xml": strings(f"<si>{'<r/>' * 100_001}</si>")}),
        "a row or a string of more than 100000 elements",
    ),
    (
        "a tag without end",
        lambda: with_part("</sheetData>", f'</sheetData><x y="{"z" * 6_000_000}"/>'),
        "a row, a text or a tag of more than 4194304 bytes",
    ),
    (
        "strings in another part",
        lambda: repacked(workbook(), {"docProps/core.xml": strings("<si/>" * 320_001)}),
        TOO_MUCH,
    ),
    (
        "a chart sheet",
        workbook(edit=lambda book: book.create_chartsheet("chart")),
        "has a chart sheet: delete it",
    ),
    (
        "a sheet under two names",
        with_part('(<sheet [^>]*)name="Sheet"([^>]*/>)', r'\g<0>\1name="b"\2', part="xl/workbook.xml"),
        "names a sheet twice: save it in Excel",
    ),
    (
        "Strict Open XML",
        with_part(re.escape(MAIN), "http://purl.oclc.org/ooxml/spreadsheetml/main", part="xl/workbook.xml"),
        "is a Strict Open XML file: save it as an Excel workbook",
    ),
    (
        "a row that Excel does not have",
        with_part("</sheetData>", '<row r="1048577"><c><v>1</v></c></row></sheetData>'),
        "has row 1048577, but Excel's last is 1048576",
    ),
    (
        "a row without a number after the last",
        with_part("</sheetData>", '<row r="1048576"/><row><c><v>1</v></c></row></sheetData>'),
        "has row 1048577, but Excel's last is 1048576",
    ),
    ("a cell twice", with_part('r="B2"', 'r="A2"'), "a cell in the wrong place in row 2"),
    ("a cell of another row", with_part('r="B2"', 'r="B3"'), "a cell in the wrong place in row 2"),
    ("no zip", b"PK\3\4nonsense", r"is not a readable \.xlsx file \(BadZipFile\)"),
    ("an old or protected workbook", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "without a password"),
    ("a cut file", workbook()[:-30], r"is not a readable \.xlsx file"),
    ("another zip", repacked(workbook(), {"[Content_Types].xml": b"<Types/>"}), "is not a readable"),
    ("cut XML", with_part("</sheetData>.*", ""), r"is not a readable \.xlsx file \(ParseError\)"),
    (
        "text that is not there",
        with_part('<c r="A2".*?</c>', '<c r="A2" t="s"><v>999</v></c>'),
        r"has a cell in row 2 or below that cannot be read \(IndexError\): enter its value again in Excel",
    ),
    (
        "a truth value in words",
        with_part('<c r="B3".*?</c>', '<c r="B3" t="b"><v>true</v></c>'),
        r"has a cell in row 3 or below that cannot be read \(ValueError\)",
    ),
    (
        "no number",
        with_part('<c r="B4".*?</c>', '<c r="B4"><v>NaN</v></c>'),
        r"has a cell in row 4 or below that cannot be read \(ValueError\)",
    ),
    (
        "entities",
        with_part("<worksheet", '<!DOCTYPE x [<!ENTITY a "aaaa">]><worksheet'),
        "has a document type declaration",
    ),
    # Made by their tests: they would delay the collection of all.
    ("a bomb", lambda: repacked(workbook(), {"xl/x.xml": bytes(64_000_001)}), "more than 64000000 bytes unp"),
    ("many parts", lambda: repacked(workbook(), {f"x{n}": b"" for n in range(10_000)}, 0), "or 10000 parts"),
    (
        "a wide sheet",
        with_part(
            "</sheetData>",
            "".join(f'<row r="{n}"><c r="XFD{n}"/></row>' for n in range(9, 999)) + "</sheetData>",
        ),
        "more than 10000000 cells",
    ),
    ("a column that Excel does not have", with_part('r="G1"', 'r="XFE1"'), "wrong place in row 1"),
    (
        "a long row",
        workbook([*HEADER, *(f"tag.{n}" for n in range(33))], [*row(), *["x" * 32_767] * 33]),
        "has a row of more than 1048576 characters",
    ),
]


@pytest.mark.parametrize(("content", "reason"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_workbook_that_could_be_misread_is_refused(
    zone: Any, content: bytes | Callable[[], bytes], reason: str
) -> None:
    path = zone.manifest("a.xlsx", content() if callable(content) else content)
    with pytest.raises(KycError, match=rf"^manifests/2024-09-01/a\.xlsx: .*{reason}") as caught:
        list(read_manifest(path, Counter()))
    assert str(caught.value).isprintable()


MISPLACED = {
    "a row of values beside the type": '<row><c t="inlineStr"><v>B</v></c></row>',
    "a value beside the type": "<row><c><is><t>B</t></is></c></row>",
    "a row in parts": "<row><q:g><c><v>1</v></c></q:g></row>",
    "a foreign cell": "<row><q:c/></row>",
    "a foreign row": "<q:row><c><v>1</v></c></q:row>",
    "a choice of rows": "<q:AlternateContent><row><c><v>1</v></c></row></q:AlternateContent>",
    "two values": '<row><c t="str"><v>A</v><v>B</v></c></row>',
    "two texts": '<row><c t="inlineStr"><is><t>A</t><t>B</t></is></c></row>',
    "an element in a value": '<row><c t="str"><v>A<q:x/>B</v></c></row>',
    "a text without a cell": "<row>B</row>",
    "a text without a row": "B",
    "a cell after the extensions": "<row><extLst/><c><v>1</v></c></row>",
}


@pytest.mark.parametrize("rows", MISPLACED.values(), ids=MISPLACED)
def test_a_value_where_openpyxl_does_not_look_refuses_the_file(zone: Any, rows: str) -> None:
    foreign = with_part("<worksheet ", '<worksheet xmlns:q="urn:q" ')
    path = zone.manifest("a.xlsx", with_part("</sheetData>", f"{rows}</sheetData>", foreign))
    with pytest.raises(
        KycError, match=r"has an element or a value (in row 5|after row 4) where Excel does not"
    ):
        list(read_manifest(path, Counter()))


def test_a_shared_string_with_two_texts_refuses_the_file(zone: Any) -> None:
    path = zone.manifest("a.xlsx", with_strings("<si><t>a</t><t>b</t></si>"))
    with pytest.raises(KycError, match="has an element or a value in a shared string where Excel does not"):
        list(read_manifest(path, Counter()))


def test_what_excel_may_write_beside_values_does_no_harm(zone: Any) -> None:
    rows = """
        <row r="5" spans="1:5" ht="12.5">
          <c r="A5" t="s"><v>0</v></c> <c r="B5" t="str"><v>id.jpg</v></c>
          <c r="C5" t="inlineStr"><is><r><rPr><b/><sz val="9"/></rPr><t>selfie</t></r><r><t>.png</t></r>
            <rPh sb="0" eb="1"><t>phonetic</t></rPh><phoneticPr fontId="1"/></is></c>
          <c r="D5" s="0"/> <c r="E5" t="inlineStr"><v></v></c> <c r="F5"><v/></c>
          <c r="G5" t="e"><f ca="1">NA()</f><v>#N/A</v><extLst><ext uri="x"><c><v>1</v></c></ext></extLst></c>
          <extLst><ext uri="x"><v>1</v></ext></extLst>
        </row></sheetData>
        <conditionalFormatting sqref="A1"><cfRule type="expression" priority="1">
          <formula>A1</formula></cfRule></conditionalFormatting>
        <mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">
          <mc:Choice Requires="x14"><row xmlns="urn:drawing">1</row></mc:Choice></mc:AlternateContent>
        <extLst><ext uri="x"><row xmlns="urn:x"><v>1</v></row></ext></extLst>"""
    rich = """<si><r><t>A</t></r><r><rPr><b/></rPr><t>4</t></r>
        <rPh sb="0" eb="1"><t>x</t></rPh><phoneticPr fontId="1"/></si>"""
    zone.manifest("a.xlsx", with_strings(rich, with_part("</sheetData>", rows)))
    zone.ingest()
    assert (zone.ids(), zone.rejected()) == (["A1", "A2", "A3", "A4"], [])


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ("x005F_7", "x005F_7"),
        ("idx005F_1", "idx005F_1"),
        ("scan_x1080_2", "scan_x1080_2"),
        ("scan_x005F_x1080_2", "scan_x1080_2"),
        ("a_x005F_x000D_b", "a_x000D_b"),
        ("_x005F_x005F_7", "_x005F_7"),
        ("a_x000D_b", None),
    ],
)
def test_escapes_of_excel_are_undone_alike_in_shared_and_inline_strings(
    zone: Any, stored: str, text: str | None
) -> None:
    cells = ('t="s"><v>0</v>', f't="inlineStr"><is><t>{stored}</t></is>', f't="str"><v>{stored}</v>')
    content = workbook(HEADER, *(row(f"A{number}", tag_k="v") for number in range(3)))
    for number, cell in enumerate(cells, 2):
        content = with_part(f'(<c r="E{number}").*?</c>', rf"\1 {cell}</c>", content)
    zone.manifest("a.xlsx", with_strings(f"<si><t>{stored}</t></si>", content))
    zone.ingest()
    assert [dict(row["tags"]).get("k") for row in zone.accepted()] == ([] if text is None else [text] * 3)


@pytest.mark.parametrize(
    ("serial", "starts_in_1904", "day"),
    [
        ("1", False, "1900-01-01"),
        ("58", False, "1900-02-27"),
        ("60", False, None),
        ("61", False, "1900-03-01"),
        ("-5", False, None),
        ("1", True, "1904-01-02"),
        ("-1", True, None),
    ],
)
def test_only_days_of_excels_calendar_are_dates(
    zone: Any, serial: str, starts_in_1904: bool, day: str | None
) -> None:
    """Excel has a 29 February 1900, with the number 60."""

    def edit(book: Any) -> None:
        if starts_in_1904:
            book.epoch = CALENDAR_MAC_1904

    content = workbook(HEADER, row(tag_k=dt.date(2000, 1, 1)), edit=edit)
    zone.manifest("a.xlsx", with_part('(<c r="E2"[^>]*><v>)[^<]*', rf"\g<1>{serial}", content))
    zone.ingest()
    assert [row["tags"] for row in zone.accepted()] == ([] if day is None else [[("k", day)]])
    assert [row["detail"] for row in zone.rejected()] == (["a tag must be text"] if day is None else [])


def test_a_date_in_iso_8601_is_a_date(zone: Any) -> None:
    """As some writers store it."""
    date = '<c r="E2" t="d"><v>2024-09-01</v></c>'
    zone.manifest("a.xlsx", with_part('<c r="E2".*?</c>', date, workbook(HEADER, row(tag_k="v"))))
    zone.ingest()
    assert [row["tags"] for row in zone.accepted()] == [[("k", "2024-09-01")]]


def test_a_far_cell_costs_little(zone: Any) -> None:
    """Memory for the area between the cells is what readers with dense tables take."""
    far = '<row r="1048576"><c r="XFD1048576" t="inlineStr"><is><t>x</t></is></c></row></sheetData>'
    zone.manifest("a.xlsx", with_part("</sheetData>", far))
    zone.ingest()
    assert zone.ids() == ["A1", "A2", "A3"]
    assert zone.rejected()[0]["detail"] == "expected 7 fields, found 16384"
    assert zone.reasons() == [(1_048_575, "malformed_row")]
