"""The labels' lock is a ledger lease: a second reader waits, the lease is renewed, and a crash frees it."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from kyc_pipeline.ingest.lock import LOCK_KEY, labels_lock
from kyc_pipeline.ledger import locks
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import LeaseLost, PartitionBusy, acquire_lease
from kyc_pipeline.ledger.schema import leases
from kyc_pipeline.ledger.times import Clock


def expiry(ledger: Ledger) -> int:
    with ledger.read() as connection:
        return int(connection.execute(sa.select(leases.c.expires_at)).scalar_one())


def test_the_lock_is_held_by_one_at_a_time_and_is_free_afterwards(ledger_url: str) -> None:
    inside = 0
    errors: list[BaseException] = []

    def work() -> None:
        nonlocal inside
        try:
            with Ledger(ledger_url) as ledger, labels_lock(ledger, "run", wait_seconds=60) as check:
                inside += 1
                assert inside == 1
                check()
                inside -= 1
        except BaseException as error:  # shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, errors) == (0, [])
    with Ledger(ledger_url) as ledger, labels_lock(ledger, "run", wait_seconds=0):
        pass


def test_a_lock_is_renewed_while_it_is_held(
    ledger_url: str, until: Callable[[Callable[[], bool]], None]
) -> None:
    with (
        Ledger(ledger_url, lease_seconds=0.3) as ledger,
        Ledger(ledger_url) as other,
        labels_lock(ledger, "the-holder", wait_seconds=0),
    ):
        first = expiry(other)
        ledger.lease_seconds = 60  # from the first renewal on, however busy the machine
        until(lambda: expiry(other) > first + 30_000_000)
        with (
            pytest.raises(
                PartitionBusy, match=r"waited 0 s for another reading of labels or erasure: .*the-holder"
            ),
            labels_lock(other, "run", wait_seconds=0),
        ):
            raise AssertionError("two have the lock")


def test_a_long_wait_for_the_lock_is_announced_once(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "_SILENT_SECONDS", 0.0)
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.1)
    with (
        Ledger(ledger_url) as ledger,
        labels_lock(ledger, "the-holder", wait_seconds=0),
        pytest.raises(PartitionBusy),
        labels_lock(ledger, "run", wait_seconds=1),
    ):
        raise AssertionError("two have the lock")
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "waiting up to 1 s for another reading of labels or erasure: the lock `labels`"
    )
    assert "run the-holder" in record.getMessage()


KILLED_HOLDER = """
import os, signal, sys
from kyc_pipeline.ingest.lock import labels_lock
from kyc_pipeline.ledger.database import Ledger
with labels_lock(Ledger(sys.argv[1]), "killed"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_lock_of_a_dead_process_is_free_at_once(ledger_url: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_HOLDER, ledger_url], check=False)
    assert killed.returncode == -signal.SIGKILL
    with Ledger(ledger_url) as ledger:
        assert expiry(ledger) > 0
        with labels_lock(ledger, "run", wait_seconds=0) as check:
            check()


def test_the_lock_of_a_dead_host_is_taken_after_its_lease(ledger_url: str) -> None:
    time = 1_000_000
    with Ledger(ledger_url, clock=Clock(lambda: time, lambda: time)) as ledger:
        acquire_lease(ledger, LOCK_KEY, "of-another-host")
        with ledger.write() as connection:
            connection.execute(sa.update(leases).values(machine="another", host="far"))
        with pytest.raises(PartitionBusy, match="on far"), labels_lock(ledger, "run", wait_seconds=0):
            raise AssertionError("two have the lock")
        time += int(ledger.lease_seconds * 1_000_000)
        with labels_lock(ledger, "run", wait_seconds=0) as check:
            check()


@pytest.mark.parametrize("change", ["taken", "deleted"])
def test_a_lock_that_was_lost_says_so_and_stays_with_its_new_holder(ledger_url: str, change: str) -> None:
    with Ledger(ledger_url) as ledger:
        with labels_lock(ledger, "run", wait_seconds=0) as check:
            with ledger.write() as connection:
                connection.execute(
                    sa.update(leases).values(token="other") if change == "taken" else sa.delete(leases)
                )
            with pytest.raises(LeaseLost, match="start again"):
                check()
        with ledger.read() as connection:
            tokens = connection.execute(sa.select(leases.c.token)).scalars().all()
    assert tokens == (["other"] if change == "taken" else [])
