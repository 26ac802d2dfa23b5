"""Manifests as tools write them: whatever wrote the three rows, ingest reads the same three.

Tools among the development packages write the file here. Files of others are in `tests/fixtures/manifests`,
whose README says which program of which version wrote each. What has no program here is written as its
documentation says.
"""

import csv
import io
import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.landing_options import LandingOptions

FILES = Path(__file__).parents[2] / "fixtures" / "manifests"

HEADER = ["submission_id", "id_file", "selfie_file", "tag.companyName", "tag.customerId", "submitted_at"]
Written = Callable[[], bytes]

COMPANY = 'Müller, "Söhne"; 5 €'
ROWS: list[list[str | None]] = [
    ["A-1", "id.jpg", "selfie.png", COMPANY, "0012", "2024-09-01T10:00:00Z"],
    ["A-2", "id.jpg", "selfie.png", None, "7", None],
    ["A-3", "id.jpg", "selfie.png", "C:\\", None, "2024-09-01T12:30:00+02:00"],
]
TAGS: list[dict[str, str]] = [
    {"companyName": COMPANY, "customerId": "0012"},
    {"customerId": "7"},
    {"companyName": "C:\\"},
]
TIMES = [datetime(2024, 9, 1, 10, tzinfo=UTC), None, datetime(2024, 9, 1, 10, 30, tzinfo=UTC)]
TRUTH = [(row[0], tags, time) for row, tags, time in zip(ROWS, TAGS, TIMES, strict=True)]


def spreadsheet(
    separator: str,
    encoding: str,
    end: str = "\r\n",
    start: str = "",
    empty: int = 0,
    quoting: Any = csv.QUOTE_MINIMAL,
) -> bytes:
    """Excel and LibreOffice quote a cell with a separator, a quote or a line end, and no other.

    Excel takes the separator and the code page from the locale of Windows. Rows that once had values stay as
    empty ones.
    """
    target = io.StringIO(newline="")
    writer = csv.writer(target, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([HEADER, *ROWS, *[[""] * len(HEADER)] * empty])
    return (start + target.getvalue()).encode(encoding)


def frame() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=HEADER)


def of_pandas(method: str, **options: Any) -> Written:
    def written() -> bytes:
        target = io.BytesIO()
        getattr(frame(), method)(target, **options)
        return target.getvalue()

    return written


def typed(tags: pa.DataType) -> pa.Table:
    """Times as timestamps, tags as a map or a struct."""
    columns = {name: pa.array([row[index] for row in ROWS]) for index, name in enumerate(HEADER[:3])}
    values: list[Any] = [list(row.items()) if pa.types.is_map(tags) else row for row in TAGS]
    return pa.table(
        {
            **columns,
            "tags": pa.array(values, tags),
            "submitted_at": pa.array(TIMES, pa.timestamp("us", "UTC")),
        }
    )


MAP = pa.map_(pa.string(), pa.string())


def pyarrow_parquet(table: pa.Table, **options: Any) -> bytes:
    target = io.BytesIO()
    pq.write_table(table, target, **options)
    return target.getvalue()


def pyarrow_csv() -> bytes:
    target = io.BytesIO()
    pacsv.write_csv(pa.Table.from_pandas(frame()), target)
    return target.getvalue()


def of_duckdb(tags: str, options: str) -> Written:
    def written() -> bytes:
        rows = [[*row[:3], json.dumps(tag), row[5]] for row, tag in zip(ROWS, TAGS, strict=True)]
        columns = "submission_id TEXT, id_file TEXT, selfie_file TEXT, j TEXT, s TEXT"
        query = f"SELECT * EXCLUDE (j, s), {tags} AS tags, s::TIMESTAMPTZ AS submitted_at FROM t"
        with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
            connection.execute(f"SET TimeZone = 'Europe/Berlin'; CREATE TABLE t ({columns})")
            connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
            connection.execute(f"COPY ({query}) TO '{folder}/x' ({options})")
            return Path(folder, "x").read_bytes()

    return written


def recorded(name: str) -> Written:
    return (FILES / name).read_bytes


def workbook(write_only: bool) -> bytes:
    book = openpyxl.Workbook(write_only=write_only)
    sheet = book.create_sheet("Tabelle1", 0)
    for row in [HEADER, *ROWS]:
        sheet.append(row)
    target = io.BytesIO()
    book.save(target)
    return target.getvalue()


def airbyte() -> bytes:
    """JSON Lines of the S3 destination, flattened at the root, with Airbyte's metadata fields."""
    lines = []
    for number, (row, tags) in enumerate(zip(ROWS, TAGS, strict=True)):
        meta = {
            "_airbyte_raw_id": f"0190a3b4-0000-7000-8000-00000000000{number}",
            "_airbyte_extracted_at": 1725184800000,
            "_airbyte_generation_id": 0,
            "_airbyte_meta": {"changes": [], "sync_id": 1},
        }
        lines.append(
            json.dumps(
                meta | dict(zip(HEADER[:3], row[:3], strict=True)) | {"tags": tags, "submitted_at": row[5]}
            )
        )
    return ("\n".join(lines) + "\n").encode()


HAND_TYPED = f"""\ufeff
Submission ID ;ID-File; Selfie File;TAG.companyName;tag. customerId;Submitted-At;;
A-1;id.jpg;selfie.png;"{COMPANY.replace('"', '""')}";0012;2024-09-01 10:00Z
A-2;id.jpg;selfie.png;;7;;;

A-3;id.jpg;selfie.png;C:\\;;2024-09-01T12:30:00+0200
;;;;;;;
"""

STRUCT = pa.struct([("companyName", pa.string()), ("customerId", pa.string())])
TOOLS: list[tuple[str, str, Written]] = [
    ("Excel, English (US)", "csv", lambda: spreadsheet(",", "cp1252")),
    ("Excel, German", "csv", lambda: spreadsheet(";", "cp1252", empty=3)),
    ("Excel, Polish", "csv", lambda: spreadsheet(";", "cp1250")),
    ("Excel, CSV UTF-8, German", "csv", lambda: spreadsheet(";", "utf-8-sig")),
    ("Excel, Unicode text", "tsv", lambda: spreadsheet("\t", "utf-16")),
    ("Excel, sep=", "csv", lambda: spreadsheet(";", "utf-8-sig", start="sep=;\r\n")),
    ("LibreOffice", "csv", lambda: spreadsheet(",", "utf-8", "\n")),
    ("LibreOffice, all quoted", "csv", lambda: spreadsheet(",", "utf-8", "\n", quoting=csv.QUOTE_ALL)),
    ("openpyxl", "xlsx", lambda: workbook(False)),
    ("openpyxl, write only", "xlsx", lambda: workbook(True)),
    ("SheetJS", "xlsx", recorded("sheetjs.xlsx")),
    ("SheetJS, CSV", "csv", recorded("sheetjs.csv")),
    ("pandas, CSV with its index", "csv", of_pandas("to_csv")),
    ("pandas, CSV", "csv.gz", of_pandas("to_csv", index=False, compression="gzip")),
    ("pandas, JSON", "jsonl", of_pandas("to_json", orient="records", lines=True)),
    ("pandas, Parquet", "parquet", of_pandas("to_parquet")),
    ("pandas, Excel with its index", "xlsx", of_pandas("to_excel")),
    ("pyarrow, CSV", "csv", pyarrow_csv),
    ("pyarrow, map", "parquet", lambda: pyarrow_parquet(typed(MAP), row_group_size=1)),
    ("pyarrow, struct", "parquet", lambda: pyarrow_parquet(typed(STRUCT), compression="brotli")),
    ("DuckDB, map", "parquet", of_duckdb("j::JSON::MAP(TEXT, TEXT)", "FORMAT parquet, COMPRESSION zstd")),
    ("DuckDB, JSON", "parquet", of_duckdb("j::JSON", "FORMAT parquet")),
    ("DuckDB, CSV", "csv", of_duckdb("j::JSON", "FORMAT csv, HEADER")),
    ("DuckDB, JSON Lines", "jsonl", of_duckdb("j::JSON", "FORMAT json")),
    ("polars, Parquet", "parquet", recorded("polars.parquet")),
    ("polars, CSV", "csv", recorded("polars.csv")),
    ("polars, JSON Lines", "jsonl", recorded("polars.jsonl")),
    ("Spark, Parquet", "snappy.parquet", recorded("spark_int96.parquet")),
    ("Spark, Parquet in microseconds", "zstd.parquet", recorded("spark_micros.parquet")),
    ("Spark, CSV with doubled quotes", "csv", recorded("spark_escape.csv")),
    ("Spark, JSON Lines", "jsonl", recorded("spark.jsonl")),
    ("dlt, Parquet", "parquet", recorded("dlt.parquet")),
    ("dlt, JSON Lines", "jsonl.gz", recorded("dlt.jsonl.gz")),
    ("dlt, CSV", "csv.gz", recorded("dlt.csv.gz")),
    ("Airbyte", "jsonl", airbyte),
    ("Go, encoding/csv", "csv", recorded("go.csv")),
    ("Go, encoding/json", "jsonl", recorded("go.jsonl")),
    ("Java, opencsv", "csv", recorded("opencsv.csv")),
    ("by hand", "csv", HAND_TYPED.encode),
]


def seen(zone: Any) -> list[tuple[Any, ...]]:
    return [(row["submission_id"], dict(row["tags"]), row["submitted_at"]) for row in zone.accepted()]


@pytest.mark.parametrize(("tool", "suffix", "write"), TOOLS, ids=[tool[0] for tool in TOOLS])
def test_every_tool_gives_the_same_rows(zone: Any, tool: str, suffix: str, write: Written) -> None:
    zone.manifest(f"m.{suffix}", write())
    # Polish Windows has another code page.
    zone.ingest(options=LandingOptions(csv_encoding="windows-1250" if "Polish" in tool else "windows-1252"))
    assert zone.rejected() == []
    assert seen(zone) == TRUTH


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("spark.csv", r"has text after a closing quote \(line 2\)"),
        ("commons_csv_mysql.tsv", r"has \\N for an absent value \(row 2\)"),
    ],
)
def test_what_would_be_misread_is_refused(zone: Any, name: str, reason: str) -> None:
    zone.manifest(name, recorded(name)())
    with pytest.raises(KycError, match=reason):
        zone.ingest()


def test_numbers_that_a_tool_made_of_texts_are_rejected(zone: Any) -> None:
    """pandas and spreadsheets take `0012` for 12 unless they are told to take text."""
    numbers = frame().assign(**{"tag.customerId": [12, 7, 8]})
    for suffix in ("xlsx", "jsonl"):
        target = io.BytesIO()
        if suffix == "xlsx":
            numbers.to_excel(target, index=False)
        else:
            numbers.to_json(target, orient="records", lines=True)
        path = zone.manifest(f"m.{suffix}", target.getvalue())
        zone.ingest()
        assert [row["detail"] for row in zone.rejected()] == ["a tag must be text"] * 3
        path.unlink()


def test_the_layout_of_spark(zone: Any) -> None:
    """A marker file, hidden checksums, and parts of which one has no rows."""
    name = "part-0000{}-5f0c2b7e-5d0a-4a54-9a0f-4c1b8d3f9c1e-c000.snappy.parquet"
    zone.manifest(name.format(0), recorded("spark_int96.parquet")())
    zone.manifest(name.format(1), pyarrow_parquet(typed(MAP).slice(3)))
    zone.manifest(f".{name.format(0)}.crc", b"crc\0")
    zone.manifest("_SUCCESS", b"")
    summary = zone.ingest()
    assert (summary.manifests, summary.ignored_files) == (2, ())
    assert seen(zone) == TRUTH
