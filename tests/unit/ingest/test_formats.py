"""The formats of a manifest: the same rows, whatever the encoding, separator or container."""

import gzip
import io
import json
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kyc_pipeline.erasure.landing_zone import LandingZone
from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.formats import read_manifest
from kyc_pipeline.ingest.formats.size_limits import MAX_COLUMNS
from kyc_pipeline.ingest.landing_options import LandingOptions
from tests.unit.ingest.conftest import Zone, ZoneWithLedger

DAY = "2024-09-01"
HEADER = "submission_id,id_file,selfie_file,tags\n"
ROWS = 'A1,id.jpg,selfie.png,"{""k"":""ü, \n;""}"\nA2,id.jpg,selfie.png,\n'
CSV = HEADER + ROWS.replace(", \n;", ", ;")
EXPECTED = [("1", [("k", "ü, ;")]), ("2", [])]

VARIANTS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "plain": ("a.csv", str.encode),
    "upper-case suffix": ("A.CSV", str.encode),
    "byte order mark": ("a.csv", lambda text: text.encode("utf-8-sig")),
    "CRLF": ("a.csv", lambda text: text.replace("\n", "\r\n").encode()),
    "CR": ("a.csv", lambda text: text.replace("\n", "\r").encode()),
    "UTF-16 with mark": ("a.csv", lambda text: text.encode("utf-16")),
    "UTF-16 LE without mark": ("a.csv", lambda text: text.encode("utf-16-le")),
    "UTF-16 BE without mark": ("a.csv", lambda text: text.encode("utf-16-be")),
    "semicolons": ("a.csv", lambda text: text.replace(",", ";").replace("ü; ;", "ü, ;").encode()),
    "tabs": ("a.csv", lambda text: in_tabs(text)),
    "tabs, by name": ("a.tsv", lambda text: in_tabs(text)),
    "tabs, by name, zipped": ("a.tsv.gz", lambda text: gzip.compress(in_tabs(text))),
    "no last line end": ("a.csv", lambda text: text.rstrip("\n").encode()),
    "empty lines": ("a.csv", lambda text: ("\n\n" + text.replace("\nV", "\n\nV") + "\n\n").encode()),
    "spaces in the header": ("a.csv", lambda text: text.replace("id_file,", " id_file ,").encode()),
    "gzip": ("a.csv.gz", lambda text: gzip.compress(text.encode())),
    "gzip in two members": (
        "a.csv.gz",
        lambda text: gzip.compress(text[:30].encode()) + gzip.compress(text[30:].encode()),
    ),
    "gzip without the suffix": ("a.csv", lambda text: gzip.compress(text.encode())),
    "gzip of UTF-16": ("a.csv.gz", lambda text: gzip.compress(text.encode("utf-16"))),
}


def in_tabs(text: str) -> bytes:
    return text.replace(",", "\t").replace("ü\t ;", "ü, ;").encode()


def seen(zone: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(row["submission_id"], row["tags"]) for row in zone.accepted()]


def of_manifest(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Those of one manifest, in its order."""
    return sorted((row for row in rows if row["manifest"] == name), key=lambda row: row["manifest_row"])


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Zone:
    """A day with all of them."""
    zone = Zone(tmp_path_factory.mktemp("zone"))
    for number, (variant, (name, encode)) in enumerate(VARIANTS.items()):
        zone.manifest(f"{variant} {name}", encode(CSV.replace("\nA", f"\nV{number}-")))
    zone.ingest()
    assert zone.rejected() == []
    return zone


@pytest.mark.parametrize("variant", VARIANTS)
def test_csv_variants(variants: Zone, variant: str) -> None:
    rows = of_manifest(variants.accepted(), f"{variant} {VARIANTS[variant][0]}")
    assert [(row["submission_id"].partition("-")[2], row["tags"]) for row in rows] == EXPECTED
    assert [row["manifest_row"] for row in rows] == [1, 2]


ANSI = HEADER + 'A1,id.jpg,selfie.png,"{""k"":""Müller – Łódź""}"\n'


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(("end", "lines"), [("\n", 40_000), ("\r", 3)])
def test_csv_in_a_code_page_is_read_only_if_it_is_set(zone: Any, pack: Any, end: str, lines: int) -> None:
    # The letters come after the first block.
    text = (HEADER + ANSI.removeprefix(HEADER).replace("Łódź", "€")).replace("\n", end)
    filler = "".join(f"B{n},lost.jpg,selfie.png,{end}" for n in range(lines))
    content = (text[: len(HEADER)] + filler + text[len(HEADER) :]).encode("cp1252")
    zone.manifest("a.csv", pack(content))
    with pytest.raises(
        KycError, match=rf"\(line {lines + 2}\): save it as UTF-8 .*, or set KYC_CSV_ENCODING$"
    ):
        zone.ingest()
    zone.ingest(options=LandingOptions(csv_encoding="windows-1252"))
    assert seen(zone) == [("A1", [("k", "Müller – €")])]
    rows = list(LandingZone(zone.landing, "windows-1252").rows())
    assert rows[-1].readings == [{"k": "Müller – €", "submissionId": "A1"}]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_large_csv_whose_text_is_longer_in_utf8(zone: Any, encoding: str) -> None:
    rows = "".join(f"B{n},id.jpg,selfie.png,{'é' if n < 5 else ''}\n" for n in range(60_000))
    zone.manifest("a.csv", ("submission_id,id_file,selfie_file,tag.k\n" + rows).encode(encoding))
    zone.ingest(options=LandingOptions(csv_encoding="windows-1252"))
    assert len(zone.accepted()) == 60_000


def test_a_csv_that_is_not_in_the_code_page_of_the_setting_is_refused_by_its_name(zone: Any) -> None:
    zone.manifest("a.csv", ANSI.encode("cp1250").replace(b"M", b"\x81"))
    with pytest.raises(KycError) as caught:
        zone.ingest(options=LandingOptions(csv_encoding="windows-1252"))
    assert str(caught.value).endswith(
        "a.csv: is not windows-1252 text (line 2): correct KYC_CSV_ENCODING, or save the file as UTF-8"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ANSI.encode(), "Müller – Łódź"),
        (ANSI.encode("utf-8-sig"), "Müller – Łódź"),
        (ANSI.encode("utf-16"), "Müller – Łódź"),
    ],
    ids=["UTF-8", "with a mark", "UTF-16"],
)
def test_the_setting_changes_no_file_that_is_unicode(zone: Any, content: bytes, expected: str) -> None:
    zone.manifest("a.csv", content)
    zone.ingest(options=LandingOptions(csv_encoding="windows-1252"))
    assert seen(zone) == [("A1", [("k", expected)])]


def test_a_csv_in_two_encodings_is_refused(zone: Any) -> None:
    zone.manifest("a.csv", ANSI.encode("cp1250") + b"\r\n" + ANSI.encode())
    zone.manifest("b.jsonl", b'{"a":"\xfc"}')
    options = LandingOptions(csv_encoding="windows-1252")
    with pytest.raises(KycError, match=r"a\.csv: is UTF-8 in line 5, but not in line 2: save it as UTF-8$"):
        zone.ingest(options=options)
    zone.manifest("a.csv", ANSI.encode())
    with pytest.raises(KycError, match=r"b\.jsonl: is not utf-8 text \(line 1\): save it as UTF-8$"):
        zone.ingest(options=options)


def test_csv_quoted_line_breaks_count_as_one_row(zone: Any) -> None:
    zone.manifest("a.csv", HEADER + ROWS + "A3,lost.jpg,selfie.png,\n")
    zone.ingest()
    assert [(row["submission_id"], row["manifest_row"]) for row in zone.accepted()] == [("A2", 2)]
    assert zone.reasons() == [(1, "invalid_tags"), (3, "file_not_found")]


def test_csv_rows_with_other_numbers_of_fields_are_malformed(zone: Any) -> None:
    zone.manifest(
        "a.csv",
        HEADER + "A1,id.jpg\nA2,id.jpg,selfie.png,\n\nA3,id.jpg,selfie.png,,x,y\nA4,id.jpg,selfie.png,\n,\n",
    )
    summary = zone.ingest()
    assert summary.received == 5
    assert zone.ids() == ["A2", "A4"]
    assert [row["manifest_row"] for row in zone.accepted()] == [2, 4]
    assert [(r["submission_id"], r["manifest_row"], r["reason"]) for r in zone.rejected()] == [
        ("A1", 1, "malformed_row"),
        ("A3", 3, "malformed_row"),
        (None, 5, "malformed_row"),
    ]
    assert zone.rejected()[0]["detail"] == "expected 4 fields, found 2"


def test_csv_row_numbers_hold_over_many_blocks(tmp_path: Path) -> None:
    zone = ZoneWithLedger(tmp_path)
    padding = "x" * 200
    lines = [f"S{n:06},id.jpg,selfie.png,{padding}\n" for n in range(1, 40_001)]
    for n in range(0, 40_000, 97):
        lines[n] = f"S{n + 1:06},id.jpg\n"
    zone.manifest("a.csv", "submission_id,id_file,selfie_file,note\n" + "".join(lines))
    assert zone.ingest().received == 40_000
    assert all(int(row["submission_id"][1:]) == row["manifest_row"] for row in zone.accepted())
    assert all(int(row["submission_id"][1:]) == row["manifest_row"] for row in zone.rejected())


def test_csv_cells_of_several_lines(zone: Any) -> None:
    zone.manifest(
        "a.csv",
        'note,submission_id,id_file,selfie_file,tags,tag.k,place\n"Well,\n\r\nwell",A1,id.jpg,selfie.png,'
        '"{""k"":\n""v""\n}",,"Berlin,\nx,y"\n,A2,id.jpg,selfie.png,,"v\nw",\n,A3,id.jpg,selfie.png,,,\n',
    )
    assert zone.ingest().received == 3
    assert seen(zone) == [("A1", [("k", "v")]), ("A3", [])]
    assert zone.rejected()[0]["detail"].startswith("a tag has a line end")


def test_csv_empty_cells_at_the_end_and_empty_rows(zone: Any) -> None:
    header = "submission_id,id_file,selfie_file"
    zone.manifest("a.csv", f"{header},,\nA1,id.jpg,selfie.png\nA2,id.jpg,selfie.png,,,,\n,,,,\n,,,,,,,\n,\n")
    zone.manifest(
        "b.csv", f"sep=,,,,,\r\n{header}\r\nB1,id.jpg,selfie.png,\r\nB2,id.jpg,selfie.png,,x\r\n,,,\r\n"
    )
    assert zone.ingest().ignored_columns == {}
    assert zone.ids() == ["A1", "A2", "B1"]
    assert [(row["submission_id"], row["detail"]) for row in zone.rejected()] == [
        (None, "expected 5 fields, found 2"),
        ("B2", "expected 3 fields, found 5"),
    ]


def test_csv_rows_of_blanks_or_empty_quotes_are_skipped_like_empty_lines(zone: Any) -> None:
    blank = '"","","",""\n , , ,\n ,\u00a0,,,, \n'
    zone.manifest("a.csv", f"{HEADER}A1,id.jpg,selfie.png,, ,\n{blank}A2,id.jpg,selfie.png,\n,id.jpg,,\n")
    assert zone.ingest().received == 3
    assert (zone.ids(), zone.reasons()) == (["A1", "A2"], [(6, "missing_field")])


def test_csv_quotes_that_cannot_be_misread(zone: Any) -> None:
    cells = ['5" x 6"', '"a\\"', '"a\\""b"', '"a""b, ""c"""', '"a, ""b""\nc"', 'a"b"c', '""""', '"""a"""']
    rows = "".join(f"A{n},id.jpg,selfie.png,,{cell}\n" for n, cell in enumerate(cells))
    path = zone.manifest("a.csv", HEADER.replace("\n", ",tag.k\n") + rows)
    values = [value for chunk in read_manifest(path, Counter()) for value in chunk["tag.k"].to_pylist()]
    assert values == ['5" x 6"', "a\\", 'a\\"b', 'a"b, "c"', 'a, "b"\nc', 'a"b"c', '"', '"a"']


def test_csv_rows_that_all_have_one_field_too_many_need_no_more_memory(zone: Any) -> None:
    rows = "".join(f"A{n},id.jpg,selfie.png,\n" for n in range(100_000))
    path = zone.manifest("a.csv", "submission_id,id_file,selfie_file\n" + rows)
    chunks = [chunk.num_rows for chunk in read_manifest(path, Counter())]
    assert sum(chunks) == 100_000
    assert len(chunks) > 2


def test_csv_tag_columns(zone: Any) -> None:
    zone.manifest(
        "a.csv",
        "tag.k,submission_id,id_file,selfie_file,branch\nv,A1,id.jpg,selfie.png,x\n,A2,id.jpg,selfie.png,\n",
    )
    assert zone.ingest().ignored_columns == {"branch": 2}
    assert seen(zone) == [("A1", [("k", "v")]), ("A2", [])]


def test_jsonl(zone: Any) -> None:
    good = '"id_file":"id.jpg","selfie_file":"selfie.png"'
    lines = [
        f'{{"submission_id":"A1",{good},"tags":{{"k":"v"}},"submitted_at":null,"branch":7}}',
        f'{{"submission_id":"A2",{good},"tags":"{{\\"k\\":\\"v\\"}}","tag.l":"w"}}',
        "",
        "{not json",
        "[1]",
        f'{{"submission_id":12,{good}}}',
        f'{{"submission_id":"A6",{good},"tags":["k"]}}',
        f'{{"submission_id":"A7",{good},"tags":{{"k":"v","k":"w"}}}}',
        '{"submission_id":"A8"}',
        f'{{"submission_id":"A9",{good},"submission_id":"A9"}}',
    ]
    zone.manifest("a.jsonl", "\r\n".join(lines))
    assert zone.ingest().ignored_columns == {"branch": 1}
    assert seen(zone) == [("A1", [("k", "v")]), ("A2", [("k", "v"), ("l", "w")])]
    assert zone.reasons() == [
        (3, "malformed_row"),
        (4, "malformed_row"),
        (5, "malformed_row"),
        (6, "invalid_tags"),
        (7, "invalid_tags"),
        (8, "missing_field"),
        (9, "malformed_row"),
    ]


GOOD = '"id_file":"id.jpg","selfie_file":"selfie.png"'


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "end"])
def test_jsonl_line_ends(zone: Any, end: str, last: str) -> None:
    lines = [ELEMENT.replace("A1", f"A{number}") for number in range(3)]
    zone.manifest("a.jsonl", end.join(lines) + (end if last else ""))
    zone.ingest()
    assert zone.ids() == ["A0", "A1", "A2"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_jsonl_row_with_more_crs_than_the_file_has_rows_costs_no_other(
    zone: Any, end: str, place: int
) -> None:
    rows = [ELEMENT.replace("A1", f"A{number}") for number in range(2)]
    rows.insert(place, '{"submission_id":"A9","tag.address":"a\rb\rc\rd\re\rf"}')
    zone.manifest("a.jsonl", end.join(rows))
    zone.ingest()
    assert zone.ids() == ["A0", "A1"]
    assert [row["reason"] for row in zone.rejected()] == ["malformed_row"]


@pytest.mark.parametrize("text", ["{0}\r{1}\r{2}\n{3}\n", "{0}\n{1}\r{2}\r \r{3}\r", "{0}\n{1}\n{2}\r{3}\n"])
def test_jsonl_files_with_different_line_ends_may_be_joined(zone: Any, text: str) -> None:
    rows = [ELEMENT.replace("A1", f"A{number}") for number in range(4)]
    zone.manifest("a.jsonl", text.format(*rows))
    zone.ingest()
    assert [(row["manifest_row"], row["submission_id"]) for row in zone.accepted()] == [
        (number + 1, f"A{number}") for number in range(4)
    ]
    assert zone.rejected() == []


def test_a_jsonl_line_that_is_no_object_costs_no_other_that_is_joined_to_it(zone: Any) -> None:
    rows = [ELEMENT.replace("A1", f"A{number}") for number in range(4)]
    zone.manifest("a.jsonl", f"{rows[0]}\n{rows[1]}\n{{no\r{rows[2]}\r\r\r{rows[3]}\n")
    zone.ingest()
    assert zone.ids() == ["A0", "A1", "A2", "A3"]
    assert zone.reasons() == [(3, "malformed_row")]


@pytest.mark.parametrize("length", range(9))
def test_a_jsonl_row_with_a_duplicate_key_and_a_value_that_is_no_json_is_malformed(
    zone: Any, length: int
) -> None:
    other = f'"note":NaN,"x":"{"é" * length}"'
    zone.manifest("a.jsonl", f'{{"submission_id":"A0","submission_id":"A1",{GOOD},{other}}}\n')
    zone.ingest()
    assert zone.reasons() == [(1, "malformed_row")]


def test_a_jsonl_row_with_too_many_members_is_malformed(zone: Any) -> None:
    members = ",".join(f'"tag.k{number}":"v"' for number in range(MAX_COLUMNS))
    zone.manifest("a.jsonl", f'{ELEMENT}\n{{"submission_id":"A2",{GOOD},{members}}}\n')
    zone.ingest()
    assert zone.ids() == ["A1"]
    (rejected,) = zone.rejected()
    assert rejected["detail"] == f"the line has {MAX_COLUMNS + 3} members, more than {MAX_COLUMNS}"


def test_a_jsonl_row_of_a_million_crs_costs_no_other(zone: Any) -> None:
    """Each of them may be a line end: to search the rest of them for the next LF would take hours."""
    crs = "\r" * 900_000
    zone.manifest("a.jsonl", "\n".join([ELEMENT, f"{crs}x", ELEMENT.replace("A1", "A2")]))
    zone.ingest()
    assert zone.ids() == ["A1", "A2"]


def test_jsonl_values_that_json_does_not_have_matter_only_where_they_are_used(zone: Any) -> None:
    lines = [
        f'{{"submission_id":"A1",{GOOD},"score":NaN,"tags":{{"k":"ü","l":"w"}}}}',
        f'{{"submission_id":"A2",{GOOD},"score":[-Infinity],"note":"\\ud83d"}}',
        f'{{"submission_id":"A3",{GOOD},"tags":{{"k":NaN}}}}',
        f'{{"submission_id":"A4",{GOOD},"tag.k":"\\ud83d"}}',
        f'{{"submission_id":"A5",{GOOD},"\\ud83d":1}}',
        f'{{"submission_id":"A6",{GOOD},"score":NaN,"submission_id":"A7"}}',
        f'{{"submission_id":"A8",{GOOD},"score":NaN,"tags":{{"k":"v","k":"w"}}}}',
        f'{{"submission_id":"A9",{GOOD},"tag.k":"a\\u0000"}}',
    ]
    zone.manifest("a.jsonl", "\n".join(lines))
    assert zone.ingest().ignored_columns == {"note": 1, "score": 3, r"\ud83d": 1}
    assert seen(zone) == [("A1", [("k", "ü"), ("l", "w")]), ("A2", []), ("A5", [])]
    assert zone.reasons() == [
        (3, "invalid_tags"),
        (4, "malformed_row"),
        (6, "malformed_row"),
        (7, "invalid_tags"),
        (8, "invalid_tags"),
    ]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_header_without_rows(zone: Any, end: str) -> None:
    zone.manifest("a.csv", HEADER.strip() + end)
    assert zone.ingest().received == 0


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_parquet_in_delta_encodings(zone: Any, encoding: str) -> None:
    names = ("submission_id", "id_file", "selfie_file", "tag.k")
    table = pa.table(
        dict(zip(names, [["A1", "A2"], ["id.jpg"] * 2, ["selfie.png"] * 2, ["v", "w"]], strict=True))
    )
    path = zone.manifest("a.parquet", b"")
    pq.write_table(table, path, use_dictionary=False, column_encoding=dict.fromkeys(names, encoding))
    zone.ingest()
    assert seen(zone) == [("A1", [("k", "v")]), ("A2", [("k", "w")])]


ELEMENT = f'{{"submission_id":"A1",{GOOD}}}'


@pytest.mark.parametrize(
    "text",
    [
        f"[{ELEMENT}]",
        f"\n[\n {ELEMENT},\n {ELEMENT}\n]\n",
        f"[{ELEMENT},\n{ELEMENT}]",
        f'[{{\n"submission_id":"A1"\n}},\n{ELEMENT}\n]',
        f'{{"rows":[\n{ELEMENT}\n]}}',
        f'{{\n"rows":\n[{ELEMENT},\n{ELEMENT}\n]\n}}',
        f"{ELEMENT},\n{ELEMENT}",
    ],
)
def test_a_json_array_is_refused_as_a_whole(zone: Any, text: str) -> None:
    zone.manifest("a.jsonl", text)
    told = r"a\.jsonl: is a JSON array \(line \d\): write one object per line, without brackets and commas$"
    with pytest.raises(KycError, match=told):
        zone.ingest()


def test_odd_json_that_is_not_used_rejects_no_row(zone: Any) -> None:
    odd = ['"n":' + "9" * 5000, '"\\ud800":1', '"\\ud800":{"\\udfff":NaN}', '"n":-1e999, "m":Infinity']
    rows = [ELEMENT.replace("A1", f"A{n}")[:-1] + f", {each}}}" for n, each in enumerate(odd)]
    zone.manifest("a.jsonl", "\n".join([*rows, ELEMENT.replace("A1", "A9")[:-1] + ', "tag.\\ud800":"x"}']))
    zone.ingest()
    assert zone.ids() == ["A0", "A1", "A2", "A3"]
    assert [row["detail"] for row in zone.rejected()] == ["the line is not a valid JSON object"]


def test_a_json_object_over_several_lines_is_refused_as_a_whole(zone: Any) -> None:
    zone.manifest("a.json", json.dumps(json.loads(ELEMENT), indent=2))
    with pytest.raises(KycError, match=r"a\.json: is a JSON object over several lines: write one object per"):
        zone.ingest()
    zone.manifest("a.json", "{\n" + ELEMENT)  # one damaged row
    zone.ingest()
    assert (zone.ids(), zone.reasons()) == (["A1"], [(1, "malformed_row")])


def test_json_lines_by_any_name(zone: Any) -> None:
    names = ["a.jsonl", "a.ndjson", "a.json", "B.NDJSON", "a.ndjson.gz", "a.json.gz"]
    for number, name in enumerate(names):
        content = ELEMENT.replace("A1", f"A{number}").encode()
        zone.manifest(name, gzip.compress(content) if name.endswith(".gz") else content)
    zone.ingest()
    assert [row["manifest"] for row in zone.accepted()] == names


def test_a_comma_after_a_later_line_rejects_only_that_line(zone: Any) -> None:
    zone.manifest("a.jsonl", f"{ELEMENT}\n{ELEMENT},\n")
    zone.ingest()
    assert zone.ids() == ["A1"]
    assert zone.reasons() == [(2, "malformed_row")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_files_that_were_joined_with_their_byte_order_marks(zone: Any, name: str, encoding: str) -> None:
    rows = [HEADER + "A1,id.jpg,selfie.png,\n", "A2,id.jpg,selfie.png,\n"]
    if name == "a.jsonl":
        rows = [f"{ELEMENT}\n", f"{ELEMENT}\n".replace("A1", "A2")]
    zone.manifest(name, "".join(f"\ufeff{text}" for text in ["\ufeff", *rows]).encode(encoding))
    zone.ingest()
    assert zone.ids() == ["A1", "A2"]


def test_a_header_that_is_repeated_is_a_malformed_row(zone: Any) -> None:
    header = HEADER.replace("submission_id", "Submission ID")
    zone.manifest("a.csv", header + "A1,id.jpg,selfie.png,\n" + header + "A2,id.jpg,selfie.png,\n")
    zone.ingest()
    assert zone.ids() == ["A1", "A2"]
    assert zone.reasons() == [(2, "malformed_row")]


def test_names_of_columns_in_other_case_and_with_blanks(zone: Any) -> None:
    names = ["Submission ID", " ID_FILE", "selfie-file ", "TAG. Customer Id ", "Submitted At"]
    values = ["A1", "id.jpg", "selfie.png", "9", "2024-09-01T10:00:00Z"]
    row = dict(zip(names, values, strict=True))
    for name, content in (
        ("a.csv", f"{';'.join(names)}\n{';'.join(values)}\n".encode()),
        ("a.jsonl", json.dumps(row).encode()),
        ("a.parquet", parquet_of([row])),
    ):
        path = zone.manifest(name, content)
        zone.ingest()
        assert [(r["submission_id"], r["tags"], r["submitted_at"].year) for r in zone.accepted()] == [
            ("A1", [("Customer Id", "9")], 2024)
        ]
        path.unlink()


def test_two_names_of_one_column_are_refused(zone: Any) -> None:
    zone.manifest("a.jsonl", f'{{"submission_id":"A1",{GOOD},"ID file":"id.jpg"}}')
    zone.ingest()
    assert zone.rejected()[0]["detail"] == "the line has a duplicate key"
    zone.manifest("b.csv", "submission_id,id_file,selfie_file,ID File\n")
    with pytest.raises(KycError, match="has the column id_file twice"):
        zone.ingest()


def parquet_of(rows: list[dict[str, str]]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), target)
    return target.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_jsonl_encodings(zone: Any, encoding: str) -> None:
    line = '{"submission_id":"A1","id_file":"id.jpg","selfie_file":"selfie.png","tags":{"k":"ü\u2028"}}\n'
    zone.manifest("a.jsonl.gz", gzip.compress(line.encode(encoding)))
    zone.ingest()
    assert seen(zone) == [("A1", [("k", "ü\u2028")])]


def parquet(**columns: Any) -> bytes:
    target = io.BytesIO()
    rows = len(next(iter(columns.values())))
    good = {"id_file": ["id.jpg"] * rows, "selfie_file": ["selfie.png"] * rows}
    pq.write_table(pa.table({**good, **columns}), target, row_group_size=1)
    return target.getvalue()


@pytest.mark.parametrize(
    "tags",
    [
        pa.array(['{"k":"v"}', None]),
        pa.array([[("k", "v")], None], pa.map_(pa.string(), pa.string())),
        pa.array([{"k": "v", "l": None}, None], pa.struct([("k", pa.string()), ("l", pa.string())])),
        pa.array(['{"k":"v"}', None]).dictionary_encode(),
        pa.array(['{"k":"v"}', None], pa.large_string()),
    ],
    ids=["text", "map", "struct", "dictionary", "large"],
)
def test_parquet_tags(zone: Any, tags: Any) -> None:
    zone.manifest("a.parquet", parquet(submission_id=["A1", "A2"], tags=tags, extra=[1, 2]))
    assert zone.ingest().ignored_columns == {"extra": 2}
    assert seen(zone) == [("A1", [("k", "v")]), ("A2", [])]


@pytest.mark.parametrize("place", ["struct", "map", "keys of a map"])
def test_parquet_tags_that_are_categories_in_several_row_groups(zone: Any, place: str) -> None:
    """Each row group has its own dictionary, and Arrow reads no batch from two."""
    values, offsets = pa.array(["v", "w", None, "v"]), cast("Any", pa.array(range(5), pa.int32()))
    keys = cast("Any", pa.array(["k", "l", "m", "n"]))
    if place == "struct":
        tags: Any = pa.StructArray.from_arrays([values.dictionary_encode()], ["k"])
    elif place == "map":
        tags = pa.MapArray.from_arrays(offsets, keys, values.dictionary_encode())
    else:
        tags = pa.MapArray.from_arrays(offsets, keys.dictionary_encode(), values)
    zone.manifest("a.parquet", parquet(submission_id=["A1", "A2", "A3", "A4"], tags=tags))
    zone.ingest()
    names = "kkkk" if place == "struct" else "klmn"
    third: list[Any] = [("A3", [])] if place == "struct" else []  # a null in a map rejects its row
    assert sorted(seen(zone)) == [
        ("A1", [(names[0], "v")]),
        ("A2", [(names[1], "w")]),
        *third,
        ("A4", [(names[3], "v")]),
    ]


def test_parquet_bad_tags_and_times(zone: Any) -> None:
    twice = pa.array([[("k", "v"), ("k", "w")], [("k", None)], []], pa.map_(pa.string(), pa.string()))
    zone.manifest("a.parquet", parquet(submission_id=["A1", "A2", "A3"], tags=twice))
    when = datetime(2024, 9, 1, 10, tzinfo=UTC)
    zone.manifest(
        "b.parquet",
        parquet(submission_id=["B1"], submitted_at=pa.array([when], pa.timestamp("ns", "Asia/Tokyo"))),
    )
    zone.manifest(
        "c.parquet", parquet(submission_id=["C1"], submitted_at=pa.array([when], pa.timestamp("ms")))
    )
    zone.ingest()
    assert [(row["submission_id"], row["submitted_at"]) for row in zone.accepted()] == [
        ("A3", None),
        ("B1", when),
    ]
    assert [(row["submission_id"], row["reason"]) for row in zone.rejected()] == [
        ("A1", "invalid_tags"),
        ("A2", "invalid_tags"),
        ("C1", "invalid_submitted_at"),
    ]


MICROSECONDS = datetime(2024, 9, 1, 10, 0, 0, 123456, tzinfo=UTC)
NANOSECONDS = 1_725_184_800_123_456_789


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pa.array([NANOSECONDS, None], pa.timestamp("ns", "UTC")), [MICROSECONDS, None]),
        (pa.array([NANOSECONDS, None], pa.timestamp("ns")), [None]),
        (
            pa.array([2**63 - 1, NANOSECONDS // 10**6], pa.timestamp("ms", "UTC")),
            [MICROSECONDS.replace(microsecond=123000)],
        ),
        (pa.array([-(2**63) + 1, 0], pa.timestamp("ms", "UTC")), [datetime(1970, 1, 1, tzinfo=UTC)]),
        (pa.array([253_402_300_800_000_000, 2**63 - 1], pa.timestamp("us", "UTC")), []),
    ],
    ids=["nanoseconds", "no zone", "far too late", "far too early", "year 10000 and infinity"],
)
def test_parquet_times_are_read_one_by_one(zone: Any, times: Any, expected: list[Any]) -> None:
    zone.manifest("a.parquet", parquet(submission_id=["A1", "A2"], submitted_at=times))
    assert zone.ingest().received == 2
    assert [row["submitted_at"] for row in zone.accepted()] == expected
    assert {row["reason"] for row in zone.rejected()} <= {"invalid_submitted_at"}


@pytest.mark.parametrize(
    ("metadata", "accepted"), [({"org.apache.spark.version": "3.5.1"}, ["A1", "A2"]), (None, [])]
)
def test_parquet_times_in_int96_are_utc_if_spark_wrote_them(
    zone: Any, metadata: Any, accepted: list[str]
) -> None:
    end = datetime(9999, 12, 31, 23, 59, 59)
    table = pa.table(
        {
            "submission_id": ["A1", "A2"],
            "id_file": ["id.jpg"] * 2,
            "selfie_file": ["selfie.png"] * 2,
            "submitted_at": pa.array([MICROSECONDS.replace(tzinfo=None), end], pa.timestamp("us")),
        }
    )
    target = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), target, use_deprecated_int96_timestamps=True)
    zone.manifest("a.parquet", target.getvalue())
    zone.ingest()
    assert zone.ids() == accepted
    assert [row["submitted_at"] for row in zone.accepted()] == [MICROSECONDS, end.replace(tzinfo=UTC)][
        : len(accepted)
    ]


UUID = uuid.UUID("00000000-0000-4000-8000-000000000012")
REFUSED = object()
TYPED: list[tuple[str, Any, object]] = [
    ("bytes", pa.array(["ü".encode()], pa.binary()), "ü"),
    ("bytes that are no UTF-8", pa.array([b"\xff"], pa.binary()), None),
    ("bytes with a NUL", pa.array([b"a\0"], pa.large_binary()), None),
    ("bytes of a fixed number", pa.array([b"ab"], pa.binary(2)), REFUSED),
    ("UUID", pa.array([UUID.bytes], pa.uuid()), str(UUID)),
    ("JSON", pa.array(['"a"'], pa.json_()), '"a"'),
    ("category", pa.array(["a"]).dictionary_encode(), "a"),
    ("category of bytes", pa.array([b"a"]).dictionary_encode(), "a"),
    ("date", pa.array([date(1990, 1, 2)]), "1990-01-02"),
    ("infinite date", pa.array([2**31 - 1], pa.date32()), None),
    ("timestamp", pa.array([NANOSECONDS], pa.timestamp("ns")), REFUSED),
    ("whole number", pa.array([12]), REFUSED),
    ("decimal", pa.array([Decimal("1.50")]), REFUSED),
    ("float", pa.array([float("nan")], pa.float64()), REFUSED),
    ("truth value", pa.array([True]), REFUSED),
    ("time of day", pa.array([1], pa.time64("ns")), REFUSED),
    ("list", pa.array([["a"]]), REFUSED),
    ("struct", pa.array([{"a": "b"}]), REFUSED),
]


def typed(values: Any, ids: str, number: int = 0) -> dict[str, pa.Table]:
    """A value in a map, in a struct and in a column of its own, by the letter of the ids; row 2 has none."""
    both = pa.concat_arrays([values, pa.nulls(1, values.type)])
    maps = pa.MapArray.from_arrays(cast("Any", pa.array([0, 1, 1], pa.int32())), pa.array(["k"]), values)
    structs = pa.StructArray.from_arrays([both], ["k"])
    columns = {"M": ("tags", maps), "S": ("tags", structs), "C": ("tag.k", both)}
    return {
        kind: pa.table(
            {
                "submission_id": [f"{kind}{number}-{row}" for row in (1, 2)],
                "id_file": ["id.jpg"] * 2,
                "selfie_file": ["selfie.png"] * 2,
                columns[kind][0]: columns[kind][1],
            }
        )
        for kind in ids
    }


@pytest.fixture(scope="module")
def values_of_all_types(tmp_path_factory: pytest.TempPathFactory) -> Zone:
    """A day with all of :data:`TYPED`, without the column of a type that is refused."""
    zone = Zone(tmp_path_factory.mktemp("zone"))
    for number, (_, values, text) in enumerate(TYPED):
        for kind, table in typed(values, "MSC", number).items():
            is_refused = text is REFUSED and kind == "C"
            pq.write_table(table.slice(is_refused), zone.manifest(f"{kind}-{number}.parquet", b""))
    zone.ingest()
    return zone


@pytest.mark.parametrize("number", range(len(TYPED)), ids=[t[0] for t in TYPED])
def test_parquet_values_have_the_same_text_in_every_place(values_of_all_types: Zone, number: int) -> None:
    _, _, text = TYPED[number]
    accepted = {
        row["submission_id"]: row["tags"]
        for kind in "MSC"
        for row in of_manifest(values_of_all_types.accepted(), f"{kind}-{number}.parquet")
    }
    without: dict[str, Any] = {f"{kind}{number}-2": [] for kind in "MSC"}
    if isinstance(text, str):
        assert accepted == without | {f"{kind}{number}-1": [("k", text)] for kind in "MSC"}
    else:
        assert accepted == without
        rejected = {row["submission_id"] for row in values_of_all_types.rejected()}
        assert {f"{kind}{number}-1" for kind in ("MS" if text is REFUSED else "MSC")} <= rejected


@pytest.mark.parametrize(
    "values", [t[1] for t in TYPED if t[2] is REFUSED], ids=[t[0] for t in TYPED if t[2] is REFUSED]
)
def test_a_parquet_column_that_is_no_text_is_refused(zone: Any, values: Any) -> None:
    pq.write_table(typed(values, "C")["C"], zone.manifest("column.parquet", b""))
    told = r"column\.parquet: has the column tag\.… of type .*: it must be text"
    with pytest.raises(KycError, match=told):
        zone.ingest()


def test_parquet_ids_and_names_of_tags_as_bytes_and_uuids(zone: Any) -> None:
    tags = pa.array([[(b"k", b"v")], None, [(b"\xff", b"v")]], pa.map_(pa.binary(), pa.binary()))
    zone.manifest(
        "a.parquet",
        parquet(submission_id=pa.array([b"A1", b"\xff", b"A3"]), tags=tags, submitted_at=[None] * 3),
    )
    zone.manifest("b.parquet", parquet(submission_id=pa.array([UUID.bytes], pa.uuid())))
    zone.ingest()
    assert sorted(seen(zone)) == [(str(UUID), []), ("A1", [("k", "v")])]
    assert [(row["submission_id"], row["reason"], row["detail"]) for row in zone.rejected()] == [
        (None, "malformed_row", "submission_id must be text in UTF-8"),
        ("A3", "invalid_tags", "tags must be a JSON object of strings"),
    ]


def unchecked(*values: bytes | None) -> Any:
    """A string column of bytes that need not be UTF-8, as some writers leave it."""
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}])
def test_a_parquet_text_that_is_not_utf8_rejects_its_row_only(zone: Any, options: dict[str, Any]) -> None:
    columns = ["submission_id", "id_file", "tag.k", "tags", "submitted_at", "consent"]
    for column in columns:
        good = [
            {"submission_id": f"{column}-{n}", "id_file": "id.jpg", "selfie_file": "selfie.png"}
            for n in (1, 2, 3)
        ]
        rows = pa.Table.from_pylist([{column: None} | row for row in good])
        values = rows[column].cast(pa.binary()).to_pylist()
        rows = rows.drop(column).append_column(column, unchecked(values[0], b"M\xfcller", values[2]))
        pq.write_table(rows, zone.manifest(f"{column}.parquet", b""), **options)
    zone.ingest()
    assert zone.ids() == sorted(f"{column}-{n}" for column in columns for n in (1, 3))
    assert [
        (row["manifest"], row["manifest_row"], row["reason"], row["detail"]) for row in zone.rejected()
    ] == [
        (
            f"{column}.parquet",
            2,
            "malformed_row",
            f"{'a tag' if column == 'tag.k' else column} must be text in UTF-8",
        )
        for column in sorted(columns)
    ]


def test_an_id_that_stands_for_an_absent_value_is_rejected(zone: Any) -> None:
    words = ["NULL", "null", "NaN", "-nan", "None", "N/A", "#N/A", "NA", "undefined", "-"]
    good = ["null-1", "NaN.", "Nancy", "none2", "N-A", "-1"]
    zone.manifest("a.csv", HEADER + "".join(f"{each},id.jpg,selfie.png,\n" for each in [*words, *good]))
    zone.ingest()
    assert zone.ids() == sorted(good)
    assert [(row["submission_id"], row["reason"]) for row in zone.rejected()] == [
        (word, "invalid_submission_id") for word in words
    ]


def test_a_parquet_column_that_is_there_twice_refuses_the_file(zone: Any) -> None:
    columns = [pa.array([text]) for text in ("A1", "A2", "id.jpg", "selfie.png")]
    table = pa.Table.from_arrays(columns, ["submission_id", "submission_id", "id_file", "selfie_file"])
    content = io.BytesIO()
    pq.write_table(table, content)
    zone.manifest("a.parquet", content.getvalue())
    with pytest.raises(KycError, match="has the column submission_id twice"):
        zone.ingest()


@pytest.mark.parametrize("kind", ["map", "struct"])
def test_a_parquet_tag_that_is_not_utf8_rejects_its_row_only(zone: Any, kind: str) -> None:
    values = unchecked(b"v", b"M\xfcller", b"w")
    if kind == "map":
        tags: Any = pa.MapArray.from_arrays(pa.array([0, 1, 2, 3]), pa.array(["k"] * 3), values)
    else:
        tags = pa.StructArray.from_arrays([values], ["k"])
    zone.manifest("a.parquet", parquet(submission_id=["A1", "A2", "A3"], tags=tags))
    zone.ingest()
    assert seen(zone) == [("A1", [("k", "v")]), ("A3", [("k", "w")])]
    assert [(row["submission_id"], row["reason"]) for row in zone.rejected()] == [("A2", "invalid_tags")]


def test_a_parquet_date_that_is_none_rejects_its_row_only(zone: Any) -> None:
    born = pa.array([0, 2**31 - 1, -800_000], pa.int32()).cast(pa.date32())  # DuckDB's infinity, and 221 BC
    zone.manifest("a.parquet", parquet(submission_id=["A1", "A2", "A3"], **{"tag.born": born}))
    zone.ingest()
    assert seen(zone) == [("A1", [("born", "1970-01-01")])]
    assert [row["detail"] for row in zone.rejected()] == [
        "a tag must be text or a date in the years 0 to 9999"
    ] * 2


CR_IN = {  # in the second of three rows
    "the last cell": (
        "A2,id.jpg,selfie.png,,v\rw",
        "malformed_row",
        'a tag has a line end: is a quote (") missing or stray?',
    ),
    "the id": ("A\r2,id.jpg,selfie.png,,v", "invalid_submission_id", None),
    "a path": ("A2,id\r.jpg,selfie.png,,v", "file_not_found", None),
    "a cell before a quoted one": ('A2,id.jpg,selfie.png\r\r,"{}",v', "file_not_found", None),
    "a surplus cell": ("A2,id.jpg,selfie.png,,v,x\ry", "malformed_row", "expected 5 fields, found 6"),
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n"])
def test_a_stray_line_end_in_a_cell_rejects_its_row_only(zone: Any, end: str) -> None:
    for case, (row, _, _) in CR_IN.items():
        rows = ["A1,id.jpg,selfie.png,,v", row, "A3,id.jpg,selfie.png,,v"]
        ids = f"{case.replace(' ', '-')}-"
        lines = ["submission_id,id_file,selfie_file,tags,tag.k", *(each.replace("A", ids) for each in rows)]
        zone.manifest(f"{case}.csv", "".join(f"{line}{end}" for line in lines))
    zone.ingest()
    for case, (_, reason, detail) in CR_IN.items():
        assert [row["manifest_row"] for row in of_manifest(zone.accepted(), f"{case}.csv")] == [1, 3], case
        (rejected,) = of_manifest(zone.rejected(), f"{case}.csv")
        assert (rejected["manifest_row"], rejected["reason"]) == (2, reason), case
        assert detail in (None, rejected["detail"]), case


def test_stray_quotes_before_a_line_end_in_a_cell_reject_no_other_row(zone: Any) -> None:
    header = "submission_id,id_file,selfie_file,tag.size"
    rows = ['A1,id.jpg,selfie.png,5" x', "A2,id\r.jpg,selfie.png,v", 'A3,id.jpg,selfie.png,6" y']
    zone.manifest("a.csv", "\n".join([header, *rows, ""]).encode())
    zone.ingest()
    assert [row["submission_id"] for row in zone.accepted()] == ["A1", "A3"]
    assert [(row["manifest_row"], row["reason"]) for row in zone.rejected()] == [(2, "file_not_found")]


@pytest.mark.parametrize("character", ["\ufdd0", "\ufdd1", "\ufdd1a", "\ufdd0\ufdd1b"])
def test_the_characters_that_stand_for_line_ends_are_text_themselves(zone: Any, character: str) -> None:
    rows = [f'A1,id.jpg,selfie.png,{character},"a\nb\rc"', f"A2,id\r.jpg,selfie.png,{character},"]
    rows += [f"A3,id.jpg,selfie.png,{character},,", f"A4,id.jpg,selfie.png,{character},x"]  # a cell too much
    zone.manifest("a.csv", "\n".join(["submission_id,id_file,selfie_file,tag.k,note", *rows, ""]).encode())
    zone.ingest()
    assert seen(zone) == [(key, [("k", character)]) for key in ("A1", "A3", "A4")]
    assert [(row["manifest_row"], row["reason"]) for row in zone.rejected()] == [(2, "file_not_found")]


@pytest.mark.parametrize("row", ["A2\rB,id.jpg,selfie.png,{},x", '"A2\rB",id.jpg,selfie.png,{},x'])
def test_a_malformed_row_shows_no_part_of_an_id(zone: Any, row: str) -> None:
    zone.manifest("a.csv", f"{HEADER}A1,id.jpg,selfie.png,\n{row}\n".encode())
    zone.ingest()
    (rejected,) = zone.rejected()
    assert (rejected["reason"], rejected["submission_id"]) == ("malformed_row", None)


@pytest.mark.parametrize(
    "text",
    [
        "submission_id,id_file,selfie_file,note,,\nA1,id.jpg,selfie.png,n\rx,,\nA2,id.jpg,selfie.png,n,,\n",
        'submission_id,id_file,selfie_file,"no\rte"\nA1,id.jpg,selfie.png,n\nA2,id.jpg,selfie.png,n\n',
    ],
)
def test_a_stray_line_end_in_the_header_or_the_first_row_is_text(zone: Any, text: str) -> None:
    zone.manifest("a.csv", text.encode())
    zone.ingest()
    assert zone.ids() == ["A1", "A2"]


@pytest.mark.parametrize(("end", "stray"), [("\n", "\r"), ("\r", "\n")])
def test_many_stray_line_ends_between_rows_are_empty_lines(zone: Any, end: str, stray: str) -> None:
    empty = stray * (3 << 20)
    zone.manifest("a.csv", (f"{HEADER}A1,id.jpg,selfie.png,{{}}\n".replace("\n", end) + empty).encode())
    zone.manifest("b.csv", f"{HEADER}{empty}A2,id.jpg,selfie.png,{{}}\n".replace("\n", end).encode())
    zone.ingest()
    assert [row["submission_id"] for row in zone.accepted()] == ["A1", "A2"]
    assert zone.rejected() == []


def test_a_line_feed_in_a_file_whose_lines_end_in_cr_rejects_its_row_only(zone: Any) -> None:
    zone.manifest(
        "a.csv", (CSV.replace("\n", "\r") + "A3,id\n.jpg,selfie.png,\rA4,id.jpg,selfie.png,\r").encode()
    )
    zone.ingest()
    assert [row["submission_id"] for row in zone.accepted()] == ["A1", "A2", "A4"]
    assert [row["manifest_row"] for row in zone.rejected()] == [3]


def test_a_line_end_in_an_ignored_column_or_at_the_edge_of_a_block_is_text(
    zone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kyc_pipeline.ingest.formats.text.BLOCK_BYTES", 256)
    header, rows = "submission_id,id_file,selfie_file,tag.k,note", []
    for n in range(200):
        note = [
            f"a{'x' * (n % 97)}\rb",
            f'"a{"x" * (n % 97)}\rb"',
            f'"a{"x" * (n % 97)}\r\nb"',
            f"{'x' * (n % 97)}",
        ][n % 4]
        rows.append(f"A{n},id.jpg,selfie.png,v{n},{note}")
    zone.manifest("a.csv", "\r\n".join([header, *rows, ""]).encode())
    zone.ingest()
    assert sorted(seen(zone)) == sorted((f"A{n}", [("k", f"v{n}")]) for n in range(200))
    assert zone.rejected() == []


UNREADABLE: list[tuple[str, str, bytes, str]] = [
    (
        "rows with other line ends",
        "a.csv",
        (HEADER + "A1,i,s,\nA2,i,s,\rA3,i,s,\n").encode(),
        r"has a cell with whole rows in it \(row 2\): .* end all rows alike \(CR, LF or CRLF\)$",
    ),
    (
        "a stray line end after a closing quote",
        "a.csv",
        (HEADER + 'A0,i,s,"a\rb"\nA1,i,s,"x"\rA2,i,s,"y"\n').encode(),
        r"has text after a closing quote \(line 3\): double .*, and end all rows alike \(CR, LF or CRLF\)$",
    ),
    (
        "a stray line end before a stray quote",
        "a.csv",
        (HEADER + 'A1,i,s,\r"\nA2,i,s,\n"\nA3,i,s,n\n"A4","i","s","n"\nA5,i,s,n\n').encode(),
        r"has text after a closing quote \(line 6\)",
    ),
    ("no header", "a.csv", b"", "is empty"),
    (
        "wrong columns",
        "a.csv",
        b"a,tag.b,c d\n1,2,3\n",
        "has no column submission_id, id_file, selfie_file: .*; it names none of the fields, but 3 others$",
    ),
    (
        "an invisible character in a name",
        "a.csv",
        "\u200bsubmission_id,id_file,selfie_file,x\n".encode(),
        r"it names id_file, selfie_file and 2 others; a name has an invisible character \(U\+200B\): type it",
    ),
    ("Parquet by another name", "a.csv", b"PAR1\0\xff", r"is a \.parquet file by its content: .* its name$"),
    ("many wrong columns", "a.csv", b"a" + b",x" * 29 + b"\n", "it names none of the fields, but 30 others$"),
    (
        "no header but data",
        "a.csv",
        b"A1,id.jpg,Anna\n",
        "has no column .*; it names none of the fields, but 3 others$",
    ),
    ("one column missing", "a.csv", b"submission_id,id_file\nA1,id.jpg\n", "has no column selfie_file"),
    (
        "a column twice",
        "a.csv",
        b"submission_id,id_file,selfie_file,id_file\n",
        "has the column id_file twice",
    ),
    ("a picture", "a.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not"),
    (
        "Latin-1",
        "a.csv",
        (HEADER + "A1,ü.jpg,selfie.png,\n").encode("latin-1"),
        r"is not utf-8 text \(line 2\)",
    ),
    ("NUL bytes", "a.csv", (HEADER + "A1,i\0d.jpg,selfie.png,\n").encode(), "is not text: line 2 has a NUL"),
    ("half a UTF-16 character", "a.csv", CSV.encode("utf-16")[:-1], "is not utf-16-le text"),
    ("open quote", "a.csv", (HEADER + 'A1,"id.jpg,selfie.png,\nA2,id.jpg,selfie.png,\n').encode(), "quotes"),
    (
        "a joined file with other columns",
        "a.csv",
        (HEADER + "A1,i,s,\nsubmission_id,selfie_file,id_file,tags\nA2,s,i,\n").encode(),
        r"names other columns in row 2: deliver joined files one by one",
    ),
    (
        "ANSI",
        "a.csv",
        (HEADER + "A1,id.jpg,é.png,\n").encode("cp1252"),
        r"\(line 2\): save it as UTF-8 \(CSV",
    ),
    (
        "quotes that swallow rows",
        "a.csv",
        (HEADER + 'A1,i.jpg,s.jpg,"\nA2,i.jpg,s.jpg,\nA3,i.jpg,s.jpg,"\nA4,i.jpg,s.jpg,\n').encode(),
        r"whole rows in it \(row 1\): close or double its quotes",
    ),
    (
        "quotes that swallow rows with CRLF in an unused column",
        "a.csv",
        b'note,submission_id,id_file,selfie_file\r\n,A1,i.jpg,s.jpg\r\n"x,A2,i.jpg,s.jpg\r\ny",A3,i.jpg,s.jpg\r\n',
        r"whole rows in it \(row 2\)",
    ),
    (
        "quotes that swallow a row in the middle of two",
        "a.csv",
        (HEADER + 'A1,i.jpg,"s.jpg,\nA2,i.jpg",s.jpg,\n').encode(),
        r"whole rows in it \(row 1\)",
    ),
    (
        "quotes escaped with a backslash",
        "a.csv",
        ("sep=,\n" + HEADER + 'A1,id.jpg,selfie.png,\nA2,id.jpg,selfie.png,"{\\"k\\":\\"v\\"}"\n').encode(),
        r"text after a closing quote \(line 4\): double each quote in a cell, since a backslash does not",
    ),
    (
        "text after a quoted cell, after many lines",
        "a.csv",
        (HEADER.replace(",", ";") + "A1;id.jpg;selfie.png;\n" * 70_000 + 'A2;"a" b;"c" d;\n').encode(),
        r"text after a closing quote \(line 70002\)",
    ),
    (
        "a text dump",
        "a.tsv",
        b"submission_id\tid_file\tselfie_file\ttag.k\nA1\ti.jpg\ts.jpg\tv\nA2\ti.jpg\ts.jpg\t\\N\n",
        r"has \\N for an absent value \(row 2\)",
    ),
    ("open quote and many rows", "a.csv", (HEADER + 'A,"' + "x,y,z,\n" * 1_500_000).encode(), "more than"),
    (
        "a zip",
        "a.csv",
        b"PK\3\4\x14\0\0\0" + CSV.encode(),
        r"is a \.zip file by its content: unpack it or correct",
    ),
    ("gzip twice", "a.jsonl.gz", gzip.compress(gzip.compress(b"{}")), r"is a \.gz file by its content"),
    ("no gzip", "a.csv.gz", b"\x1f\x8bnonsense", "damaged .gz"),
    ("cut gzip", "a.csv.gz", gzip.compress(CSV.encode())[:-12], "damaged .gz"),
    ("damaged gzip", "a.csv.gz", gzip.compress(CSV.encode())[:-8] + bytes(8), "damaged .gz"),
    ("Latin-1 lines", "a.jsonl", b'{}\n{}\n{"a":"\xfc"}\n', r"is not utf-8 text \(line 3\)"),
    ("a line without end", "a.jsonl", b"x" * 9_000_000, "more than"),
    ("no Parquet", "a.parquet", b"PAR1", "is not a readable Parquet file"),
    (
        "a damaged footer",
        "a.parquet",
        parquet(submission_id=["A1"])[:-60] + bytes(52) + parquet(submission_id=["A1"])[-8:],
        "is not a readable Parquet file",
    ),
    ("cut Parquet", "a.parquet", parquet(submission_id=["A1"])[:-20], "is not a readable Parquet file"),
    ("Parquet without columns", "a.parquet", parquet(x=["A1"]), "has no column submission_id"),
    ("numbers as ids", "a.parquet", parquet(submission_id=[1]), "column submission_id of type int64"),
]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Zone:
    """A day that was ingested, and has another manifest since."""
    zone = Zone(tmp_path_factory.mktemp("zone"))
    zone.rows({"submission_id": "old"}, {"submission_id": "bad", "id_file": "lost.jpg"}, name="0.csv")
    zone.ingest()
    zone.rows({"submission_id": "new"}, name="1.csv")
    return zone


@pytest.mark.parametrize(
    ("name", "content", "reason"), [u[1:] for u in UNREADABLE], ids=[u[0] for u in UNREADABLE]
)
def test_an_unreadable_manifest_fails_the_day_and_changes_nothing(
    ingested: Zone, name: str, content: bytes, reason: str
) -> None:
    before = ingested.files()
    unreadable = ingested.manifest(name, content)
    with pytest.raises(KycError, match=reason) as caught:
        ingested.ingest()
    assert str(caught.value).startswith(f"manifests/2024-09-01/{name}: ")
    assert "\n" not in str(caught.value)
    assert ingested.files() == before
    unreadable.unlink()


def test_damaged_pages_of_a_parquet_file(zone: Any) -> None:
    content = bytearray(parquet(submission_id=[f"A{n}" for n in range(50)]))
    content[20:400] = bytes(380)
    zone.manifest("a.parquet", bytes(content))
    with pytest.raises(KycError, match=r"manifests/2024-09-01/a\.parquet"):
        zone.ingest()


def test_names_that_are_no_manifests_are_reported_or_unfinished(zone: Any, tmp_path: Path) -> None:
    zone.rows({}, name="a.csv")
    for name in ("notes.txt", "a.xls", "line\nend.doc"):
        zone.manifest(name, b"x")
    unfinished = (
        "b.csv.tmp",
        "c.csv.part",
        "e.csv.filepart",
        "f.csv.crdownload",
        "G.CSV.Partial",
        "h.download",
    )
    markers = ("_SUCCESS", "_committed_12", "_started_12")
    for name in (".hidden.csv", "~$d.xlsx", *unfinished, *markers):
        zone.manifest(name, b"x")
    (zone.landing / "manifests/2024-09-01/folder.csv").mkdir()
    summary = zone.ingest()
    assert summary.manifests == 1
    assert summary.ignored_files == ("a.xls", "folder.csv", "line\\nend.doc", "notes.txt")


MEASURE = """
import sys
from collections import Counter
from pathlib import Path
from bench.peak_memory import peak_bytes
from kyc_pipeline.ingest.formats import read_manifest
path, rows = Path(sys.argv[1]), int(sys.argv[2])
with path.open("w") as file:
    file.write("submission_id,id_file,selfie_file,tags\\n")
    for _ in range(rows // 1000):
        file.write(("A1," + "a" * 40 + "," + "b" * 40 + ',"' + "v" * 70 + '"\\n') * 1000)
assert sum(chunk.num_rows for chunk in read_manifest(path, Counter())) == rows
print(path.stat().st_size, peak_bytes())
"""


def test_memory_does_not_grow_with_a_manifest(tmp_path: Path) -> None:
    """Measures only reading, at 63 and 158 MB: smaller files do not fill all buffers."""
    (small, small_peak), (large, large_peak) = (
        map(
            int,
            subprocess.check_output([sys.executable, "-c", MEASURE, str(tmp_path / "a.csv"), rows]).split(),
        )
        for rows in ("400000", "1000000")
    )
    assert large - small > 90_000_000
    assert large_peak - small_peak < (large - small) / 2


@pytest.mark.parametrize("erases", [False, True])
def test_a_value_that_a_library_cannot_read_fails_its_own_day_and_is_named(zone: Any, erases: bool) -> None:
    far = pa.array([2**31 - 1], pa.date32())
    zone.manifest("odd.parquet", parquet(submission_id=["A1"], submitted_at=far))
    with pytest.raises(KycError, match=r"^manifests/2024-09-01/odd\.parquet: "):
        zone.ingest(erased=(lambda tags: False) if erases else None)
    landing = LandingZone(zone.landing)
    zone.rows({"submission_id": "A2"}, day="2024-09-02")
    assert [row.date for row in landing.rows()] in ([DAY, "2024-09-02"], ["2024-09-02"])


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (pa.array([{"k": "1", "zqxmark": None}]), "struct"),
        (pa.array([[{"zqxmark": 1}]]), "list"),
        (pa.array([1], pa.timestamp("s", "zqxmark")), "timestamp"),
    ],
    ids=["struct", "list", "time zone"],
)
def test_the_type_of_a_column_is_shown_without_names_in_it(zone: Any, values: Any, shown: str) -> None:
    columns = {"submission_id": values, "id_file": ["id.jpg"], "selfie_file": ["id.jpg"]}
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target)
    zone.manifest("odd.parquet", target.getvalue())
    with pytest.raises(KycError, match=f"has the column submission_id of type {shown}: it must be text"):
        zone.ingest()
