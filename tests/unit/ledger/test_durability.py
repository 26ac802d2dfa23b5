"""What a commit survives: the modes of both databases, and files that are not the ledger's."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import Ledger, LedgerError, WrongLedger
from kyc_pipeline.ledger.leases import acquire_lease, release_lease
from kyc_pipeline.ledger.models import Claim
from kyc_pipeline.ledger.queries import read_entries
from kyc_pipeline.privacy.pseudonyms import load_pseudonymizer
from kyc_pipeline.settings import Settings
from tests.unit.postgres import PostgresServer

DATE = "2024-09-01"


def url_of(file: Path) -> str:
    return f"sqlite:///{file}"


def journal_mode(file: Path) -> str:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def claim(file: Path, *ids: str) -> None:
    with Ledger(url_of(file)) as ledger:
        lease = acquire_lease(ledger, DATE, "run")
        commit(ledger, lease, [Claim(key, "c") for key in ids], [])
        release_lease(ledger, lease)


def into_wal_mode(file: Path) -> sqlite3.Connection:
    """Leaves the file as an older version has it: in WAL mode, with commits in the log only."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("UPDATE submissions SET error = 'in the log'")
    return connection


def test_sqlite_writes_without_a_wal_and_flushes_every_commit(tmp_path: Path) -> None:
    with Ledger(url_of(tmp_path / "ledger.sqlite")) as ledger, ledger.write() as connection:
        modes = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        ]
    assert modes == ["truncate", 3]  # 3 is EXTRA


def test_the_ledger_of_an_older_version_leaves_wal_mode_with_all_it_knows(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    claim(file, "a")
    with contextlib.closing(into_wal_mode(file)):
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        for name in ("ledger.sqlite", "ledger.sqlite-wal"):
            shutil.copy(tmp_path / name, crashed / name)
    with Ledger(url_of(crashed / "ledger.sqlite")) as ledger, ledger.read() as connection:
        assert connection.exec_driver_sql("SELECT error FROM submissions").scalar() == "in the log"
    assert journal_mode(crashed / "ledger.sqlite") == "delete"
    assert not (crashed / "ledger.sqlite-wal").exists()


def test_an_older_version_that_still_runs_is_no_reason_to_switch(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    claim(file, "a")
    with (
        contextlib.closing(into_wal_mode(file)),
        Ledger(url_of(file), busy_timeout=0.1) as ledger,
        pytest.raises(LedgerError, match="locked"),
    ):
        read_entries(ledger, ["a"])
    assert journal_mode(file) == "wal"


def test_the_log_of_another_file_is_not_applied(tmp_path: Path) -> None:
    file, backup = tmp_path / "ledger.sqlite", tmp_path / "backup.sqlite"
    claim(file, "a")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(f"VACUUM INTO '{backup}'")
    with contextlib.closing(into_wal_mode(file)):
        shutil.copy(tmp_path / "ledger.sqlite-wal", tmp_path / "backup.sqlite-wal")
    before = backup.read_bytes()
    with Ledger(url_of(backup)) as ledger, pytest.raises(WrongLedger, match=r"backup\.sqlite-wal"):
        acquire_lease(ledger, DATE, "run")
    assert backup.read_bytes() == before


def test_a_log_without_its_file_is_no_new_ledger(tmp_path: Path) -> None:
    log = tmp_path / "ledger.sqlite-wal"
    log.write_bytes(b"commits of a file that is gone")
    with Ledger(url_of(tmp_path / "ledger.sqlite")) as ledger:
        assert not ledger.exists()
        with pytest.raises(WrongLedger, match=r"ledger\.sqlite-wal"):
            acquire_lease(ledger, DATE, "run")
    assert [path.name for path in tmp_path.iterdir()] == [log.name]


@pytest.mark.parametrize("replacement", [None, "backup.sqlite"])
def test_a_file_that_was_removed_or_replaced_takes_no_claim(tmp_path: Path, replacement: str | None) -> None:
    file = tmp_path / "ledger.sqlite"
    claim(file, "a")
    shutil.copy(file, tmp_path / "backup.sqlite")
    with Ledger(url_of(file)) as ledger:
        lease = acquire_lease(ledger, DATE, "run")
        if replacement:
            (tmp_path / replacement).replace(file)
        else:
            file.unlink()
        with pytest.raises(WrongLedger, match="removed or replaced"):
            commit(ledger, lease, [Claim("b", "c")], [])
    if replacement:
        with Ledger(url_of(file)) as ledger:
            assert set(read_entries(ledger, ["a", "b"])) == {"a"}
    else:
        assert not file.exists()


def test_postgres_commits_durably_whatever_the_role_says(postgres: PostgresServer, postgres_url: str) -> None:
    with psycopg.connect(host=str(postgres.socket), user="kyc", dbname="postgres", autocommit=True) as admin:
        setting = sql.SQL("ALTER ROLE kyc {} synchronous_commit").format
        admin.execute(setting(sql.SQL("SET")) + sql.SQL(" = off"))
        try:
            with Ledger(postgres_url) as ledger, ledger.write() as connection:
                assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        finally:
            admin.execute(setting(sql.SQL("RESET")))


def test_the_new_key_file_is_flushed_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("kyc_pipeline.lake.atomic.sync", lambda path: synced.append(str(path)))
    load_pseudonymizer(Settings(_env_file=None, kyc_landing=tmp_path / "data" / "landing"))
    assert synced == [str(tmp_path), str(tmp_path / "data")]
