"""Small manifests that unpack to very much."""

import gzip
import io
import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kyc_pipeline.ingest import formats
from kyc_pipeline.ingest.formats import csv as csv_format
from kyc_pipeline.ingest.formats import csv_rows, read_manifest, text
from kyc_pipeline.ingest.formats import parquet as parquet_format
from kyc_pipeline.ingest.formats.size_limits import (
    CHUNK_BYTES,
    MAX_CHUNK_CELLS,
    MAX_COLUMNS,
    MAX_ROW_BYTES,
)
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable

ROWS = 2000
LONG = "x" * 50_000


def repeated(value: Any, kind: pa.DataType | None = None) -> Any:
    """A column with the same value in each row, stored once."""
    indices = pa.array([0] * ROWS, pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array([value], kind))


def maps() -> Any:
    """A column of maps with the same long value."""
    offsets: Any = pa.array(range(ROWS + 1), pa.int32())
    keys: Any = pa.array(["k"] * ROWS)
    return pa.MapArray.from_arrays(offsets, keys, repeated(LONG).dictionary_decode())


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("submission_id", lambda: repeated(LONG), LONG),
        ("submission_id", lambda: repeated(LONG.encode(), pa.binary()), LONG),
        ("submission_id", lambda: repeated(LONG).dictionary_decode(), LONG),
        ("tag.customerId", lambda: repeated(LONG), LONG),
        ("tags", lambda: repeated(json.dumps({"k": LONG})), json.dumps({"k": LONG})),
        (
            "tags",
            lambda: pa.array([json.dumps({"k": LONG})] * ROWS, pa.json_()),
            json.dumps({"k": LONG}),
        ),
        ("tags", maps, json.dumps({"k": LONG})),
        (
            "tags",
            lambda: pa.StructArray.from_arrays([repeated(LONG).dictionary_decode()], ["k"]),
            json.dumps({"k": LONG}),
        ),
    ],
    ids=["id", "bytes", "plain", "tag", "JSON", "type JSON", "map", "struct"],
)
def test_a_dictionary_is_not_unpacked_at_once(tmp_path: Path, name: str, column: Any, expected: str) -> None:
    columns = {"submission_id": ["a"] * ROWS, "id_file": ["b"] * ROWS, "selfie_file": ["c"] * ROWS}
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table(columns | {name: column()}), path)
    assert path.stat().st_size < 1_000_000
    before, rows = pa.total_allocated_bytes(), 0
    for chunk in read_manifest(path, Counter()):
        assert pa.total_allocated_bytes() - before < 40_000_000, f"all rows are {ROWS * len(LONG)} bytes"
        assert chunk.nbytes < 2 * CHUNK_BYTES + MAX_ROW_BYTES
        assert chunk["manifest_row"].to_pylist() == list(range(rows + 1, rows + 1 + chunk.num_rows))
        assert (
            json.loads(chunk[name][0].as_py()) == json.loads(expected)
            if name == "tags"
            else (chunk[name][chunk.num_rows - 1].as_py() == expected)
        )
        rows += chunk.num_rows
    assert rows == ROWS


def nested(kind: pa.DataType, rows: int = ROWS) -> tuple[Any, Any]:
    """A struct, and a map, with the same long value in each row."""
    value: Any = LONG if "str" in str(kind) else LONG.encode()
    values = pa.array([value] * rows, kind)
    keys: Any = pa.array(["k"] * rows)
    offsets: Any = pa.array(range(rows + 1), pa.int32())
    return pa.StructArray.from_arrays([values], ["k"]), pa.MapArray.from_arrays(offsets, keys, values)


def of_rows(rows: int, **columns: Any) -> pa.Table:
    ids = [f"A{row}" for row in range(rows)]
    return pa.table({"submission_id": ids, "id_file": ["b"] * rows, "selfie_file": ["c"] * rows, **columns})


VARIABLE = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.binary(len(LONG)),
]


@pytest.mark.parametrize("kind", VARIABLE, ids=[str(kind).partition("[")[0] for kind in VARIABLE])
def test_every_type_of_long_values_is_unpacked_a_few_rows_at_a_time(
    tmp_path: Path, kind: pa.DataType
) -> None:
    path = tmp_path / "m.parquet"
    is_text = not pa.types.is_fixed_size_binary(kind)
    for tags in nested(kind, 50):  # Arrow cannot write more views at once
        table = of_rows(50, tags=tags)
        with pq.ParquetWriter(path, table.schema) as writer:
            for _ in range(ROWS // 50):
                writer.write_table(table)
        assert path.stat().st_size < 1_000_000
        before, rows = pa.total_allocated_bytes(), 0
        for chunk in read_manifest(path, Counter()):
            assert pa.total_allocated_bytes() - before < 40_000_000, f"all rows are {ROWS * len(LONG)} bytes"
            assert json.loads(chunk["tags"][0].as_py())["k"] == (LONG if is_text else None)
            rows += chunk.num_rows
        assert rows == ROWS


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("tags", lambda: pa.array([[LONG]] * ROWS), "type list"),
        ("tag.k", lambda: pa.array([[LONG]] * ROWS, pa.large_list(pa.string_view())), "type large_list"),
        ("tag.k", lambda: nested(pa.large_string())[0], "type struct"),
        ("tag.k", lambda: pa.array([LONG.encode()] * ROWS, pa.binary(len(LONG))), "type fixed_size_binary"),
    ],
    ids=["list", "views in a list", "struct", "fixed size"],
)
def test_what_is_refused_is_not_unpacked_before(tmp_path: Path, name: str, column: Any, message: str) -> None:
    values = column()
    path = tmp_path / "m.parquet"
    pq.write_table(of_rows(len(values), **{name: values}), path)
    del values
    pool = pa.default_memory_pool()
    pa.set_memory_pool(fresh := pa.system_memory_pool())
    try:
        before = fresh.max_memory() or 0
        with pytest.raises(ManifestUnreadable, match=message):
            list(read_manifest(path, Counter()))
        peak = (fresh.max_memory() or 0) - before
    finally:
        pa.set_memory_pool(pool)
    assert peak < 60_000_000


def test_huge_values_are_unpacked_one_by_few(tmp_path: Path) -> None:
    """A value may be as long as its column in the file, and each row may have it."""
    values = pa.array(["x" * 30_000_000] * 20, pa.string())
    path = tmp_path / "m.parquet"
    pq.write_table(of_rows(20, tags=pa.StructArray.from_arrays([values], ["k"])), path)
    del values
    batches = parquet_format._batches(pq.ParquetFile(path), ["tags"], is_dense=True)
    assert next(batches).num_rows <= 8


@pytest.mark.parametrize("kind", VARIABLE[:6], ids=map(str, VARIABLE[:6]))
@pytest.mark.parametrize("place", ["struct", "map"])
def test_a_long_row_is_refused_in_every_type(tmp_path: Path, kind: pa.DataType, place: str) -> None:
    long = "x" * (MAX_ROW_BYTES + 1)
    values = pa.array([long if "str" in str(kind) else long.encode()], kind)
    offsets: Any = pa.array([0, 1], pa.int32())
    tags: Any = pa.StructArray.from_arrays([values], ["k"])
    if place == "map":
        keys: Any = pa.array(["k"])
        tags = pa.MapArray.from_arrays(offsets, keys, values)
    path = tmp_path / "m.parquet"
    pq.write_table(of_rows(1, tags=tags), path)
    with pytest.raises(ManifestUnreadable, match="has a row of more than"):
        list(read_manifest(path, Counter()))


def test_bytes_of_a_huge_fixed_number_are_refused_even_if_they_are_absent(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(of_rows(1, **{"tag.k": pa.nulls(1, pa.binary(MAX_ROW_BYTES + 1))}), path)
    with pytest.raises(ManifestUnreadable, match="has a row of more than"):
        list(read_manifest(path, Counter()))


def test_lines_with_ever_other_keys_make_small_chunks(tmp_path: Path) -> None:
    row = {"submission_id": "a", "id_file": "b", "selfie_file": "c"}
    path = tmp_path / "m.jsonl"
    lines = [json.dumps(row | {f"tag.{line}-{key}": "1" for key in range(2000)}) for line in range(20)]
    path.write_text("\n".join([*lines, *[json.dumps(row)] * 3_000]))
    rows = 0
    for chunk in read_manifest(path, Counter()):
        assert chunk.num_rows * chunk.num_columns < 2 * MAX_CHUNK_CELLS
        rows += chunk.num_rows
    assert rows == 3_020


def csv(tmp_path: Path, rows: str, columns: str = "") -> Path:
    path = tmp_path / "m.csv"
    path.write_text(f"submission_id,id_file,selfie_file{columns}\n{rows}")
    return path


def test_too_many_columns(tmp_path: Path) -> None:
    path = csv(tmp_path, "", "".join(f",tag.{number}" for number in range(MAX_COLUMNS - 2)))
    with pytest.raises(ManifestUnreadable, match=f"has {MAX_COLUMNS + 1} columns, more than {MAX_COLUMNS}"):
        list(read_manifest(path, Counter()))


@pytest.mark.parametrize(
    ("module", "limit", "value", "rows", "message"),
    [
        (formats, "MAX_ROWS", 4, "a,b,c\n" * 5, "more than 4 rows"),
        (formats, "MAX_MALFORMED_ROWS", 4, "a\n" * 5, "more than 4 malformed rows"),
        (text, "MAX_TEXT_BYTES", 60, "\n" * 100, "more than 60 bytes of text"),
    ],
)
def test_too_much_of_something_is_one_clear_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    limit: str,
    value: int,
    rows: str,
    message: str,
) -> None:
    path = csv(tmp_path, rows)
    list(read_manifest(path, Counter()))
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(ManifestUnreadable, match=rf"m\.csv: has {message}"):
        list(read_manifest(path, Counter()))


def test_a_csv_of_malformed_rows_only_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_bytes = 1 << 12
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(csv_rows, "MAX_MALFORMED_ROWS", 1000)
    path = tmp_path / "m.csv"
    path.write_text("submission_id,id_file,selfie_file\n" + "a\n" * 300_000)
    read: list[int] = []
    blocks = text.text_blocks

    def counted(*args: Any) -> Any:
        for block in blocks(*args):
            read.append(len(block))
            yield block

    monkeypatch.setattr(csv_format, "text_blocks", counted)
    with pytest.raises(ManifestUnreadable, match=r"m\.csv: has more than 1000 malformed rows"):
        list(read_manifest(path, Counter()))
    assert sum(read) < 100 * block_bytes


def test_a_csv_that_is_one_long_line_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "m.csv.gz"
    header = b"submission_id,id_file,selfie_file\n"
    path.write_bytes(gzip.compress(header) + gzip.compress(b"a" * MAX_ROW_BYTES) * 100)
    tracemalloc.start()
    with pytest.raises(ManifestUnreadable, match=r"m\.csv\.gz: has a row of more than"):
        list(read_manifest(path, Counter()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * MAX_ROW_BYTES


def test_a_csv_row_of_many_cells_is_refused_if_it_is_too_long(tmp_path: Path) -> None:
    cells = ",".join(["a" * (MAX_ROW_BYTES // 2)] * 6)
    path = csv(tmp_path, "A1,b,c\n" + cells + "\n")
    with pytest.raises(ManifestUnreadable, match="has a row of more than"):
        list(read_manifest(path, Counter()))


@pytest.mark.parametrize("before", [0, 90_000, 120_000])
@pytest.mark.parametrize("text", ["a\r", "é"])
def test_a_csv_row_below_the_limit_is_read_wherever_it_is(tmp_path: Path, before: int, text: str) -> None:
    cell = text * (MAX_ROW_BYTES // 5 * 4 // len(text.encode()))
    path = csv(tmp_path, "A1,b,c\n" * before + f'A2,b,"{cell}"\n')
    assert sum(chunk.num_rows for chunk in read_manifest(path, Counter())) == before + 1


def test_a_large_column_of_a_row_group_and_a_long_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.parquet"
    rows = {"submission_id": ["a" * (MAX_ROW_BYTES + 1)], "id_file": ["b"], "selfie_file": ["c"]}
    pq.write_table(pa.table(rows), path)
    with pytest.raises(ManifestUnreadable, match="has a row of more than"):
        list(read_manifest(path, Counter()))
    monkeypatch.setattr(parquet_format, "MAX_COLUMN_BYTES", 1000)
    with pytest.raises(ManifestUnreadable, match="more than 1000 bytes of a column in a row group"):
        list(read_manifest(path, Counter()))


class _Watched(io.FileIO):
    """Counts the bytes that are read."""

    read_bytes = 0

    def readinto(self, buffer: Any, /) -> int:
        size = super().readinto(buffer)
        _Watched.read_bytes += size or 0
        return size or 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size if size is not None else -1) or b""
        _Watched.read_bytes += len(data)
        return data


class _WatchedPath(type(Path())):  # type: ignore[misc]  # the base depends on the system
    def open(self, *_: Any, **__: Any) -> Any:
        return _Watched(str(self))


def test_row_groups_are_not_read_ahead(tmp_path: Path) -> None:
    """Arrow would keep all of them until the file is closed."""
    groups, rows = 60, 1000
    names: list[list[str]] = [
        [f"{group}-{row}-{os.urandom(40).hex()}" for row in range(rows)] for group in range(groups)
    ]
    schema = pa.schema([(name, pa.string()) for name in ("submission_id", "id_file", "selfie_file")])
    with pq.ParquetWriter(tmp_path / "m.parquet", schema) as writer:
        for group in names:
            writer.write_table(pa.table([pa.array(group)] * 3, schema=schema))
    _Watched.read_bytes = 0
    chunks = read_manifest(_WatchedPath(tmp_path / "m.parquet"), Counter())
    first = next(chunks)
    assert first.num_rows < groups * rows
    assert _Watched.read_bytes < (tmp_path / "m.parquet").stat().st_size / 2
    assert first.num_rows + sum(chunk.num_rows for chunk in chunks) == groups * rows
