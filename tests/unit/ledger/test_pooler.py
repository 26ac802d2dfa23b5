"""A ledger on PostgreSQL behind a pooler in transaction mode: each transaction gets any server session.

So nothing may be kept in a session: no prepared statement, no setting.
"""

import itertools
import os
import pwd
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import Ledger, LedgerError
from kyc_pipeline.ledger.leases import acquire_lease
from kyc_pipeline.ledger.models import AttemptResult, Claim, ClaimResult, State
from kyc_pipeline.ledger.queries import read_outcomes
from tests.optional import absent
from tests.unit.postgres import PostgresServer

PORT: Final = 6432
NUMBERS: Final = itertools.count()
POOLER: Final = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
SETTINGS: Final = {
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "1min",
    "synchronous_commit": "on",
}


@pytest.fixture(params=["transaction"])
def pooled_url(postgres: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a new database behind a real pgbouncer with two server sessions; the parameter: its mode."""
    if POOLER is None:
        absent("pgbouncer")
    folder = postgres.socket
    name = f"pooled{os.getpid()}_{next(NUMBERS)}"
    with psycopg.connect(host=str(folder), user="kyc", dbname="postgres", autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        # What the server, the database or the role defaults to must not count.
        admin.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(name)))
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = host={folder} user=kyc\n"
        f"[pgbouncer]\nlisten_port = {PORT}\nlisten_addr =\nunix_socket_dir = {folder}\n"
        f"auth_type = any\npool_mode = {request.param}\ndefault_pool_size = 2\n"
    )
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:  # pgbouncer refuses to run as root
        nobody = pwd.getpwnam("nobody")
        identity = {"user": nobody.pw_uid, "group": nobody.pw_gid}
        os.chown(configuration, nobody.pw_uid, nobody.pw_gid)
    with subprocess.Popen(
        [POOLER, str(configuration)], stderr=subprocess.PIPE, text=True, cwd="/", **identity
    ) as pooler:
        assert pooler.stderr is not None
        log = []
        for line in pooler.stderr:
            log.append(line)
            if "process up" in line:
                break
        else:
            pytest.fail(f"pgbouncer does not start: {log}")
        try:
            yield f"postgresql+psycopg://kyc@/{name}?host={folder}&port={PORT}"
        finally:
            pooler.kill()
            pooler.communicate()


def work(url: str, date: str) -> int:
    """Claims and completes forty submissions in single transactions; returns how many are completed."""
    with Ledger(url) as ledger:
        lease = acquire_lease(ledger, date, f"run-{date}")
        for number in range(40):
            claim = Claim(f"{date}-{number}", "c")
            commit(ledger, lease, [claim], [])
            done = ClaimResult(claim, State.COMPLETED, AttemptResult.RESPONDED, billable=True, response="{}")
            commit(ledger, lease, [], [done])
        return sum(Counter(outcome for part in read_outcomes(ledger, date) for _, outcome in part).values())


def test_a_ledger_behind_pgbouncer_in_transaction_mode(pooled_url: str) -> None:
    dates = [f"2024-09-0{day}" for day in range(1, 7)]
    with ThreadPoolExecutor(len(dates)) as threads:
        assert list(threads.map(work, [pooled_url] * len(dates), dates)) == [40] * len(dates)
    with Ledger(pooled_url) as ledger:
        for _ in range(10):
            with ledger.write() as connection:
                for name, value in SETTINGS.items():
                    assert connection.exec_driver_sql(f"SHOW {name}").scalar() == value
    url = pooled_url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as another:
        for _ in range(10):  # whichever server session it gets
            row = another.execute(
                "SELECT current_setting('lock_timeout'), count(*) FROM pg_prepared_statements"
            )
            assert row.fetchone() == ("0", 0)


@pytest.mark.parametrize(
    ("pooled_url", "more", "message"),
    [("statement", "", "set its pool_mode"), ("transaction", "&options=-csearch_path%3Dkyc", "remove them")],
    indirect=["pooled_url"],
)
def test_what_a_pooler_cannot_do_is_one_clear_line(pooled_url: str, more: str, message: str) -> None:
    with Ledger(pooled_url + more) as ledger, pytest.raises(LedgerError, match=message):
        acquire_lease(ledger, "2024-09-01", "run")


def test_a_transaction_that_streams_has_the_settings_too(postgres_url: str) -> None:
    with Ledger(postgres_url) as ledger, ledger.read() as connection:
        rows = connection.execution_options(yield_per=10).exec_driver_sql(
            "SELECT current_setting('lock_timeout')"
        )
        assert rows.scalars().all() == ["30s"]


def test_a_transaction_leaves_nothing_in_its_session(postgres_url: str) -> None:
    with Ledger(postgres_url) as ledger:
        for _ in range(20):  # psycopg would prepare a statement that it sees more than five times
            with ledger.write() as connection:
                for name, value in SETTINGS.items():
                    assert connection.exec_driver_sql(f"SHOW {name}").scalar() == value
                connection.exec_driver_sql("ROLLBACK")
                left = "SELECT current_setting('lock_timeout'), count(*) FROM pg_prepared_statements"
                assert tuple(connection.exec_driver_sql(left).one()) == ("0", 0)
