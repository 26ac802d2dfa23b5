"""`kyc-pipeline ledger` and a ledger that is lost, from the command line."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.lake.identity import FILE_NAME
from tests.conftest import Landing
from tests.dagster.conftest import Run
from tests.unit.postgres import running_postgres

DAYS = ("--from", "2024-09-01", "--to", "2024-09-02")
FIRST, SECOND = "2024-09-01", "2024-09-02"


@pytest.fixture
def paid(run: Run, landing: Landing) -> Run:
    """Two days are paid for; `backup.sqlite` knows the first."""
    landing.day(FIRST, 2)
    assert run("backfill", "--from", FIRST, "--to", FIRST)[0] == 0
    with sqlite3.connect("ledger.sqlite") as connection:
        connection.execute("VACUUM INTO 'backup.sqlite'")
    connection.close()
    landing.day(SECOND, 2)
    assert run("backfill", *DAYS)[0] == 0
    return run


@pytest.fixture
def postgres_url() -> Iterator[str]:
    with running_postgres() as server:
        yield server.create_database("ledger")


def test_a_lost_ledger_is_refused_and_restored_without_a_call(paid: Run, simulator: Simulator) -> None:
    Path("ledger.sqlite").unlink()
    for command in (("plan", *DAYS), ("backfill", *DAYS), ("held", "list"), ("ledger", "check")):
        code, out, err = paid(*command)
        assert (code, out) == (1, ""), command
        assert "there is no ledger" in err
        assert err.count("\n") == 1
    assert not Path("ledger.sqlite").exists()
    code, out, _ = paid("ledger", "restore", "backup.sqlite")
    assert code == 0
    assert "completed with 2 outcomes from the lake" in out
    assert paid("ledger", "check")[0] == 0
    assert paid("backfill", *DAYS)[0] == 0
    assert simulator.received.total() == 4


def test_an_older_ledger_is_refused_and_taken_as_it_is_with_what_the_lake_knows(
    paid: Run, simulator: Simulator
) -> None:
    Path("backup.sqlite").replace("ledger.sqlite")
    code, _, err = paid("backfill", *DAYS)
    assert (code, "is older than the lake" in err) == (1, True)
    assert paid("ledger", "restore")[0] == 0
    assert paid("backfill", *DAYS)[0] == 0
    assert simulator.received.total() == 4


def test_what_only_deepxl_knows_is_adopted(paid: Run, simulator: Simulator, landing: Landing) -> None:
    """Ledger and lake are both as old as the backup: only the history has the second day."""
    for day in Path("lake/restricted/verification_responses").glob(f"date={SECOND}/*"):
        day.unlink()
    code, _, err = paid("ledger", "restore", "backup.sqlite")
    assert (code, "add --replace" in err) == (2, True)
    code, out, _ = paid("ledger", "restore", "backup.sqlite", "--replace")
    assert (code, "the former ledger is" in out) == (0, True)
    assert paid("backfill", *DAYS)[0] == 0
    assert simulator.received.total() == 4
    landing.day("2024-09-03", 1)
    code, out, _ = paid("backfill", "--from", SECOND, "--to", "2024-09-03", "--look-up-first")
    assert (code, simulator.received.total()) == (0, 5)


def test_a_ledger_is_moved_and_not_begun_anew(paid: Run, simulator: Simulator, postgres_url: str) -> None:
    code, _, err = paid("backfill", *DAYS, KYC_LEDGER_URL=postgres_url)
    assert (code, "there is no ledger" in err) == (1, True)
    assert "hidden-word" not in err
    code, out, err = paid("ledger", "move", postgres_url)
    assert code == 0, err
    assert "submissions     4" in out
    assert "hidden-word" not in out + err
    code, _, err = paid("backfill", *DAYS)
    assert (code, "was moved" in err) == (1, True)
    code, out, err = paid("backfill", *DAYS, KYC_LEDGER_URL=postgres_url)
    assert code == 0, err
    assert paid("ledger", "check", KYC_LEDGER_URL=postgres_url)[0] == 0
    assert simulator.received.total() == 4


def test_check_binds_a_lake_that_lost_its_id(paid: Run) -> None:
    (Path("lake") / FILE_NAME).unlink()
    assert paid("ledger", "check", "--bind")[0] == 0
    assert (Path("lake") / FILE_NAME).exists()


def test_a_command_from_another_folder_finds_its_ledger_by_kyc_home(
    paid: Run, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    lake = str(tmp_path / "lake")
    code, _, err = paid("backfill", *DAYS, KYC_LAKE=lake, KYC_LANDING=str(tmp_path / "landing"))
    assert (code, "there is no ledger" in err) == (1, True)
    assert paid("backfill", *DAYS, KYC_HOME=str(tmp_path))[0] == 0
    assert simulator.received.total() == 4
    assert list(elsewhere.iterdir()) == []
