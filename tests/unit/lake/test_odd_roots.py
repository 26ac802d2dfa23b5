"""Roots whose names mean something to glob, fsspec or DuckDB, and roots that are none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.storage import DAY_OF_PATH, Lake, duckdb_path
from kyc_pipeline.lake.tables import CONTRACT_DRIFT, SUBMISSIONS
from tests.optional import absent

DAYS = ["2024-09-01", "2024-09-02"]
ODD = [
    "a[1]/b=2",
    "la*ke",
    "**",
    "q?x",
    "[!a]",
    "[a-",
    "[]]",
    "x::y",
    "o'brien {1,2}",
    "date=2020-01-01/path=x",
    "%20~",
]


def check(root: str, neighbour: str) -> None:
    """Two days of one row each come back through every way of listing and reading them."""
    lake = Lake(root)
    for other, days in ((Lake(neighbour), ["2024-09-09"]), (lake, DAYS)):
        for day in days:
            row = {"path": day, "kind": "k", "occurrences": 1, "example_submission_id": "s"}
            other.write(CONTRACT_DRIFT, day, [row])
    lake.fs.touch(f"{lake.path(CONTRACT_DRIFT, DAYS[0])}.bak")  # no partition
    found = lake.partitions(CONTRACT_DRIFT)
    assert list(found) == lake.dates(CONTRACT_DRIFT) == DAYS
    with duckdb.connect() as connection:
        if not lake.is_local:
            connection.register_filesystem(lake.fs)
        rows = connection.execute(
            "SELECT regexp_extract(filename, $day, 1), path"
            " FROM read_parquet($paths, filename = true, hive_partitioning = false)",
            {"day": DAY_OF_PATH, "paths": [duckdb_path(partition.path) for partition in found.values()]},
        ).fetchall()
    assert rows == [(day, day) for day in DAYS]
    row = {"path": "new", "kind": "k", "occurrences": 1, "example_submission_id": "s"}
    lake.write(CONTRACT_DRIFT, DAYS[0], [row])
    again = lake.partitions(CONTRACT_DRIFT)
    assert [again[day].version == found[day].version for day in DAYS] == [False, True]


@pytest.mark.parametrize("name", ODD)
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    check(str(tmp_path / name / "lake"), str(tmp_path / "a1" / "b=2" / "lake"))


@pytest.mark.parametrize("name", ["a[1]/b=2", "la*ke", "date=2020-01-01/path=x"])
def test_an_object_store_may_have_any_prefix(s3_root: str, name: str) -> None:
    check(f"{s3_root}/{name}", f"{s3_root}/a1/b=2")


def test_a_backslash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"KYC_LAKE: .* has a backslash"):
        Lake(str(tmp_path / "a\\b"))


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lake"
    file.touch()
    for root in (file, file / "below"):
        with pytest.raises(
            UsageError, match=f"KYC_LAKE: {file} is not a folder: mount its volume, or choose another one"
        ):
            Lake(str(root))


def test_a_folder_that_may_not_be_read_is_not_an_empty_table(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.write(SUBMISSIONS, DAYS[0], [])
    locked = tmp_path / "restricted"
    locked.chmod(0)
    program = "import sys; from kyc_pipeline.lake import storage, tables; print(storage.Lake(sys.argv[1])"
    command = [sys.executable, "-c", f"{program}.dates(tables.SUBMISSIONS))", str(tmp_path)]
    if os.geteuid() == 0:  # root without its right to open everything
        if shutil.which("setpriv") is None:
            absent("setpriv")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        locked.chmod(0o700)
    assert (done.stdout, "PermissionError" in done.stderr) == ("", True)
    assert lake.dates(SUBMISSIONS) == [DAYS[0]]
