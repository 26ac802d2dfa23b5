"""Partitions are replaced atomically, as a whole, and read back exactly as written."""

import os
import random
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, Lake, PartitionMissing, PartitionUnreadable
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    SUBMISSIONS,
    TABLES,
    VERIFICATION_RESPONSES,
    Table,
    Zone,
)

DAY = "2024-09-01"


def drift(path: str, occurrences: int = 1) -> dict[str, object]:
    return {"path": path, "kind": "unknown_field", "occurrences": occurrences, "example_submission_id": "s"}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def test_rows_metadata_and_schema_come_back(lake: Lake) -> None:
    assert lake.write(CONTRACT_DRIFT, DAY, [drift("a"), drift("b")], {"source": "x"}) == 2
    assert lake.read(CONTRACT_DRIFT, DAY).to_pylist() == [drift("a"), drift("b")]
    assert lake.metadata(CONTRACT_DRIFT, DAY)["source"] == "x"
    assert lake.row_count(CONTRACT_DRIFT, DAY) == 2
    assert lake.dates(CONTRACT_DRIFT) == [DAY]
    assert lake.exists(CONTRACT_DRIFT, DAY)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_an_empty_partition_keeps_the_schema(lake: Lake, table: Table) -> None:
    lake.write(table, DAY, [])
    stored = lake.read(table, DAY)
    assert stored.num_rows == 0
    assert stored.schema.equals(table.schema)


@given(paths=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=30))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, paths: list[str]) -> None:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    lake.write(CONTRACT_DRIFT, DAY, [drift(path) for path in paths])
    assert lake.read(CONTRACT_DRIFT, DAY)["path"].to_pylist() == paths


def test_columns_that_a_table_got_later_are_null(lake: Lake) -> None:
    columns = [each for each in VERIFICATION_RESPONSES.columns if each.name != "sent"]
    row = {
        "submission_id": "a",
        "outcome": "completed",
        "attempts": 1,
        "billable_calls": 1,
        "content_sha256": "c",
    }
    lake.write(replace(VERIFICATION_RESPONSES, columns=tuple(columns)), DAY, [row])
    assert lake.read(VERIFICATION_RESPONSES, DAY).schema.names == VERIFICATION_RESPONSES.schema.names
    [batch] = lake.batches(VERIFICATION_RESPONSES, DAY, ["submission_id", "sent"])
    assert batch.to_pylist() == [{"submission_id": "a", "sent": None}]
    assert lake.read(VERIFICATION_RESPONSES, DAY, ["outcome"]).schema.names == ["outcome"]


def test_batches_give_the_same_rows_from_one_snapshot(lake: Lake) -> None:
    lake.write(CONTRACT_DRIFT, DAY, [drift(str(n)) for n in range(100)])
    batches = lake.batches(CONTRACT_DRIFT, DAY, batch_size=7)
    first = next(batches)
    lake.write(CONTRACT_DRIFT, DAY, [drift("other")])
    rest = pa.Table.from_batches([first, *batches])
    assert rest["path"].to_pylist() == [str(n) for n in range(100)]


def test_a_failed_write_leaves_the_old_rows_and_no_draft(lake: Lake) -> None:
    lake.write(CONTRACT_DRIFT, DAY, [drift("old")])

    def fail() -> None:
        with lake.writer(CONTRACT_DRIFT, DAY) as writer:
            writer.write([drift("new")])
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert lake.read(CONTRACT_DRIFT, DAY)["path"].to_pylist() == ["old"]
    assert os.listdir(Path(lake.path(CONTRACT_DRIFT, DAY)).parent) == ["part-0.parquet"]


def test_wrong_columns_are_refused(lake: Lake) -> None:
    with pytest.raises(KeyError):
        lake.write(CONTRACT_DRIFT, DAY, pa.table({"path": ["a"]}))
    assert not lake.exists(CONTRACT_DRIFT, DAY)


def test_a_null_in_a_required_column_is_refused(lake: Lake) -> None:
    with pytest.raises((ValueError, pa.ArrowException)):
        lake.write(CONTRACT_DRIFT, DAY, [drift("a") | {"kind": None}])
    assert not lake.exists(CONTRACT_DRIFT, DAY)


KILLED_WRITER = """
import os, signal, sys
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import CONTRACT_DRIFT
with Lake(sys.argv[1]).writer(CONTRACT_DRIFT, "2024-09-01") as writer:
    writer.write([{"path": "new", "kind": "k", "occurrences": 1, "example_submission_id": "s"}])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_rows_and_the_next_writer_cleans_up(lake: Lake) -> None:
    lake.write(CONTRACT_DRIFT, DAY, [drift("old")])
    folder = Path(lake.path(CONTRACT_DRIFT, DAY)).parent
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, lake.root], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(folder)) == 2
    assert lake.read(CONTRACT_DRIFT, DAY)["path"].to_pylist() == ["old"]
    assert pq.ParquetDataset(folder).read()["path"].to_pylist() == ["old"]
    lake.write(CONTRACT_DRIFT, DAY, [drift("newer")])
    assert os.listdir(folder) == ["part-0.parquet"]


def test_a_stale_draft_is_recognised_by_its_lock_not_by_a_process_id(lake: Lake) -> None:
    lake.write(CONTRACT_DRIFT, DAY, [])
    folder = Path(lake.path(CONTRACT_DRIFT, DAY)).parent
    # In a container the next process often has the id of the one that crashed.
    (folder / f".draft-{os.getpid()}-crashed").write_bytes(b"PAR1")
    with lake.writer(CONTRACT_DRIFT, DAY) as slow:
        lake.write(CONTRACT_DRIFT, DAY, [drift("fast")])
        assert len(os.listdir(folder)) == 2
        slow.write([drift("slow")])
    assert os.listdir(folder) == ["part-0.parquet"]
    assert lake.read(CONTRACT_DRIFT, DAY)["path"].to_pylist() == ["slow"]


BUSY_WRITER = """
import itertools, sys
import pyarrow as pa
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import CONTRACT_DRIFT
lake = Lake(sys.argv[1])
for version in itertools.count(int(sys.argv[2])):
    row = {"path": str(version), "kind": "k", "occurrences": version, "example_submission_id": "s"}
    with lake.writer(CONTRACT_DRIFT, "2024-09-01") as writer:
        for _ in range(10):
            writer.write(pa.Table.from_pylist([row] * 500))
    print(version, flush=True)
"""


def test_readers_see_whole_partitions_only_though_the_writer_is_killed_at_any_moment(lake: Lake) -> None:
    chance = random.Random(9)
    lake.write(CONTRACT_DRIFT, DAY, [drift("0", 0)] * 5000)
    folder = Path(lake.path(CONTRACT_DRIFT, DAY)).parent

    def version() -> int:
        # As the pipeline reads, and as any reader of a folder of Parquet files does.
        seen = [lake.read(CONTRACT_DRIFT, DAY)["occurrences"], pq.read_table(folder)["occurrences"]]
        assert [len(rows) for rows in seen] == [5000, 5000]
        values: list[list[Any]] = [rows.unique().to_pylist() for rows in seen]
        (first,), (second,) = values
        assert first <= second
        return int(second)

    last = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", BUSY_WRITER, lake.root, str(last + 1)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert int(writer.stdout.readline()) == last + 1
            for _ in range(chance.randrange(15)):
                assert version() >= last + 1
            writer.kill()
            written = [last + 1, *map(int, writer.stdout)]
        # The writer may have been killed after it published a version and before it printed it.
        assert written[-1] <= version() <= written[-1] + 1
        last = version()
    lake.write(CONTRACT_DRIFT, DAY, [drift("end")])
    assert os.listdir(folder) == ["part-0.parquet"]


def test_row_groups_have_statistics_so_that_readers_can_skip_them(lake: Lake) -> None:
    rows = 2 * ROW_GROUP_ROWS + 7
    ids = pa.array(np.arange(rows)).cast(pa.string())
    columns: dict[str, Any] = {
        "path": ids,
        "kind": ids,
        "occurrences": pa.array(np.arange(rows)),
        "example_submission_id": ids,
    }
    lake.write(CONTRACT_DRIFT, DAY, pa.table(columns))
    footer = pq.read_metadata(lake.path(CONTRACT_DRIFT, DAY))
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    assert [group.num_rows for group in groups] == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 7]
    for group in groups:
        for index in range(group.num_columns):
            assert group.column(index).compression == "ZSTD"
            statistics = group.column(index).statistics
            assert statistics
            assert statistics.has_min_max
            assert statistics.null_count == 0
    second = groups[1].column(2).statistics
    assert second
    assert second.min == ROW_GROUP_ROWS


def test_a_missing_partition_says_what_to_do(lake: Lake) -> None:
    with pytest.raises(PartitionMissing, match="submissions has no partition 2024-09-01: run the day"):
        lake.read(SUBMISSIONS, DAY)


def test_a_broken_partition_is_named(lake: Lake) -> None:
    lake.write(SUBMISSIONS, DAY, [])
    Path(lake.path(SUBMISSIONS, DAY)).write_bytes(b"not parquet")
    with pytest.raises(PartitionUnreadable, match="submissions partition 2024-09-01 cannot be read"):
        lake.read(SUBMISSIONS, DAY)


@pytest.mark.parametrize("date", ["2024-9-1", "20240901", "../x", "2024-13-01"])
def test_only_iso_dates_name_partitions(lake: Lake, date: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        lake.path(SUBMISSIONS, date)


def test_the_restricted_zone_is_closed_to_other_users(lake: Lake) -> None:
    lake.write(SUBMISSIONS, DAY, [])
    mode = stat.S_IMODE(os.stat(Path(lake.root) / Zone.RESTRICTED).st_mode)
    assert mode == 0o700


def test_personal_columns_are_in_the_restricted_zone_only() -> None:
    for table in TABLES:
        if table.zone is Zone.CURATED:
            assert not [column.name for column in table.columns if column.personal]
