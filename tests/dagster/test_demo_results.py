"""What the demo prints at its end, also of a run that was stopped early."""

import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import duckdb

from kyc_pipeline.analyze.build import build
from kyc_pipeline.cli.demo import exit_code, first_day, results
from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.lake_maker import Check, Submission, rejected, write_day


def results_of(lake: Lake, draft: Path) -> str:
    build(lake, draft, run_id="run")
    with duckdb.connect(draft, read_only=True) as connection:
        return results(connection)


def test_without_a_finished_day_it_says_so(tmp_path: Path) -> None:
    shown = results_of(Lake(str(tmp_path / "lake")), tmp_path / "draft")
    assert shown == "no day is finished yet: run the demo again to continue"


def test_a_check_that_neither_passed_nor_failed_has_no_rate(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    write_day(lake, "2024-09-08", [Submission(True, [Check(normalized_status="REVIEW")])])
    shown = results_of(lake, tmp_path / "draft")
    assert shown.startswith("1 row received: 0 rejected, 1 accepted; 1 completed, 1 of them verified\n")
    [line] = [line for line in shown.splitlines() if line.startswith("LIVENESS")]
    assert line.split() == ["LIVENESS", "1", "0", "0", "1", "–", "–"]


def test_only_rejected_rows_have_nobody_verified(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    write_day(lake, "2024-09-08", [], [rejected(), rejected(row=2)])
    shown = results_of(lake, tmp_path / "draft")
    assert shown.startswith("2 rows received: 2 rejected, 0 accepted; 0 completed, 0 of them verified\n")


def test_another_run_has_the_days_of_the_first_beside_files_of_the_system(tmp_path: Path) -> None:
    manifests = tmp_path / "landing" / "manifests"
    (manifests / "2024-09-08").mkdir(parents=True)
    (manifests / ".DS_Store").touch()
    assert first_day(tmp_path) == date(2024, 9, 8)


def test_a_process_that_a_signal_ended_is_no_success() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"], check=False
    )
    assert exit_code(ended.returncode) == 128 + signal.SIGTERM
    assert exit_code(0) == 0
