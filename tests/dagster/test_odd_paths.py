"""A lake, a warehouse and a temporary folder whose names are patterns or partitions to glob and DuckDB."""

import tempfile
from pathlib import Path

import pytest

from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS, VERIFICATIONS
from tests.conftest import Landing
from tests.dagster.conftest import Run

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
ROOT = "a[1]/b=2/date=2020-01-01/submission_id=x"


def test_a_temporary_folder_that_duckdb_cannot_open_is_one_line(
    landing: Landing, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landing.day(DAY, 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "what?"))
    (tmp_path / "what?").mkdir()
    for command, expected in (("plan", 2), ("backfill", 1)):
        code, _, err = run(command, "--from", DAY, "--to", DAY)
        line = (
            f"the temporary folder {tmp_path}/what? has a ? in its path, which DuckDB cannot open: "
            "set TMPDIR to another\n"
        )
        assert (code, err.endswith(line), err.count("\n")) == (expected, True, 1), err


def test_a_backfill_and_an_erasure_below_an_odd_folder(
    landing: Landing, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp[x]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp[x]"))
    odd = {
        "KYC_LAKE": f"{ROOT}/lake",
        "KYC_WAREHOUSE": f"{ROOT}/kyc.duckdb",
        "KYC_REPORT": f"{ROOT}/index.html",
    }
    # A neighbour that the name matches as a pattern.
    Lake(str(tmp_path / "a1" / ROOT.partition("/")[2] / "lake")).write(VERIFICATIONS, "2024-09-01", [])
    landing.manifest(DAY, [landing.submission("a", 1, {"customerId": "9999"}), landing.submission("b", 3)])
    # `b` belongs to another day: ingest reads that from the lake.
    landing.manifest(NEXT_DAY, [landing.submission("b", 3), landing.submission("c", 5)])

    def query(sql: str) -> list[str]:
        _, out, _ = run("query", sql, "--format", "csv", **odd)
        return out.splitlines()[1:]

    code, out, err = run("backfill", "--from", DAY, "--to", NEXT_DAY, **odd)
    assert (code, "3 accepted, 1 rejected" in out) == (0, True), err
    for fact in ("submissions", "verifications"):
        sql = f"SELECT date, submission_id FROM {fact} ORDER BY ALL"
        assert query(sql) == [f"{DAY},a", f"{DAY},b", f"{NEXT_DAY},c"]

    code, out, _ = run("erase", "--tag", "customerId=9999", **odd)
    assert (code, "lake: submissions" in out) == (0, True)
    assert query("SELECT submission_id FROM verifications ORDER BY ALL") == ["b", "c"]
    lake = Lake(str(tmp_path / ROOT / "lake"))
    assert lake.dates(SUBMISSIONS) == [DAY, NEXT_DAY]
    assert lake.read(SUBMISSIONS, DAY)["submission_id"].to_pylist() == ["b"]
    assert lake.read(REJECTED_SUBMISSIONS, DAY)["reason"].to_pylist() == ["erased_subject"]
