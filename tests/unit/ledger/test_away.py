"""A PostgreSQL server that is away for a while: each access waits for it, says so, and ends in time."""

import logging
import threading
from collections.abc import Callable

import psycopg
import pytest

from kyc_pipeline.ingest.lock import labels_lock
from kyc_pipeline.ledger.database import Ledger, LedgerError
from kyc_pipeline.ledger.queries import read_entries
from tests.unit.postgres import PostgresServer


def test_every_access_waits_for_a_server_that_is_away(
    postgres: PostgresServer,
    postgres_url: str,
    until: Callable[[Callable[[], bool]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Ledger(postgres_url) as known, Ledger(postgres_url) as new:
        assert read_entries(known, ["a"]) == {}
        postgres.stop()
        errors: list[BaseException] = []

        def use(ledger: Ledger) -> None:
            try:
                assert ledger.exists()
                with labels_lock(ledger, "run") as check:
                    check()
                    assert read_entries(ledger, ["a"]) == {}
            except BaseException as error:  # shown by the assertion below
                errors.append(error)

        users = [threading.Thread(target=use, args=(ledger,)) for ledger in (known, new)]
        for user in users:
            user.start()
        until(lambda: caplog.text.count("cannot be reached: trying again for up to 60 s") == 2)
        postgres.start()
        for user in users:
            user.join()
        assert errors == []
        assert "hidden-word" not in caplog.text


def test_the_wait_ends(postgres: PostgresServer, postgres_url: str) -> None:
    with Ledger(postgres_url, away_seconds=0.2) as ledger:
        assert read_entries(ledger, ["a"]) == {}
        postgres.stop()
        try:
            with pytest.raises(LedgerError, match="cannot be used: no connection to the server"):
                read_entries(ledger, ["a"])
        finally:
            postgres.start()
        assert read_entries(ledger, ["a"]) == {}


def test_a_server_that_refuses_the_user_is_not_waited_for(
    postgres: PostgresServer, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with psycopg.connect(host=str(postgres.socket), user="kyc", dbname="postgres", autocommit=True) as admin:
        admin.execute("CREATE ROLE stranger NOLOGIN")
    stranger = postgres_url.replace("//kyc:", "//stranger:")
    with Ledger(stranger) as ledger, pytest.raises(LedgerError):
        read_entries(ledger, ["a"])
    assert "trying again" not in caplog.text
