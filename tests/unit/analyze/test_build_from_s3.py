"""A build over a lake in an object store: the same tables, and few requests."""

import logging
import re
from pathlib import Path

import duckdb
import pytest

from kyc_pipeline.analyze.build import build
from kyc_pipeline.analyze.sql_models import load_models
from kyc_pipeline.lake import copies
from kyc_pipeline.lake.storage import SMALL, WHOLE, Lake
from kyc_pipeline.lake.tables import ALL_TABLES, LABELS, TABLES, VERIFICATIONS
from tests.unit.analyze.lake_maker import Check, Submission, write_day

DAYS = ("2024-09-01", "2024-09-02")
PEOPLE = {day: [Submission(True, [Check()]) for _ in range(3)] for day in DAYS}
Rows = dict[str, list[tuple[object, ...]]]
_REQUEST = re.compile(r'"(?:\x1b\[[0-9;]*m)*(?P<method>[A-Z]+) (?P<path>\S+) HTTP')


def requests(log: pytest.LogCaptureFixture) -> list[str]:
    """The requests in the server's log: `LIST`, or method and table."""
    found = []
    for record in log.records:
        if match := _REQUEST.search(record.getMessage()):
            tables = [table.name for table in ALL_TABLES if f"/{table.name}/" in match["path"]]
            found.append("LIST" if "list-type" in match["path"] else f"{match['method']} {tables[0]}")
    return found


def rows(path: Path) -> Rows:
    """Of every table of a warehouse. The versions of partitions depend on their store."""
    tables = {model.name: model.name for model in load_models()}
    tables["build_partitions"] = "(SELECT * EXCLUDE (version) FROM build_partitions)"
    with duckdb.connect(path, read_only=True) as connection:
        return {
            name: connection.execute(f"FROM {table} ORDER BY ALL").fetchall()
            for name, table in tables.items()
        }


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The rows of a build from a local lake."""
    folder = tmp_path_factory.mktemp("local")
    fill(Lake(str(folder / "lake")))
    build(Lake(str(folder / "lake")), folder / "kyc.duckdb", run_id="run")
    return rows(folder / "kyc.duckdb")


def fill(lake: Lake) -> None:
    for day in DAYS:
        write_day(lake, day, PEOPLE[day])


@pytest.mark.parametrize("small", [SMALL, 0], ids=["small objects", "large objects"])
def test_it_is_that_of_a_local_lake_and_reads_each_object_once(
    any_s3_root: str,
    tmp_path: Path,
    small: int,
    expected: Rows,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(copies, "SMALL", small)
    lake = Lake(any_s3_root)
    fill(lake)
    lake.write(LABELS, WHOLE, LABELS.schema.empty_table())
    tables = (*TABLES, LABELS)
    objects = [f"GET {table.name}" for table in tables for _ in lake.partitions(table)]
    with caplog.at_level(logging.INFO, "werkzeug"):
        caplog.clear()
        build(lake, tmp_path / "kyc.duckdb", run_id="run")
    if request.node.callspec.params["any_s3_root"] == "s3_endpoint":  # only moto's log is here
        found = requests(caplog)
        assert "HEAD" not in {each.split()[0] for each in found}
        if small:
            assert sorted(found) == sorted([*objects, *["LIST"] * (2 * len(tables))])
        else:
            assert set(found) > {*objects}
    assert rows(tmp_path / "kyc.duckdb") == expected


def test_a_partition_that_is_replaced_while_it_is_copied_is_read_again(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, copied = Lake(s3_root), copies.copy_small
    write_day(lake, DAYS[0], [Submission(True, [Check()])])
    written: list[int] = []

    def copy_and_replace(*arguments: object) -> dict[str, str]:
        found = copied(*arguments)  # type: ignore[arg-type]
        if not written:
            written.append(1)
            write_day(lake, DAYS[0], [Submission(True, [Check()]) for _ in range(2)])
        return found

    monkeypatch.setattr("kyc_pipeline.analyze.build.copy_small", copy_and_replace)
    build(lake, tmp_path / "kyc.duckdb", run_id="run")
    found = rows(tmp_path / "kyc.duckdb")
    assert len(found[VERIFICATIONS.name]) == 2
    assert [row[2] for row in found["build_partitions"] if row[1] == VERIFICATIONS.name] == [2]
