"""A run in the place of a lost one waits for the lost one's lease, and for nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from kyc_pipeline.ledger.database import LEASE_SECONDS, Ledger
from kyc_pipeline.ledger.leases import PartitionBusy, acquire_lease, renew_lease
from kyc_pipeline.ledger.models import Lease
from kyc_pipeline.ledger.schema import leases
from kyc_pipeline.ledger.times import Clock
from kyc_pipeline.orchestration.takeover import take_over

DAY = "2024-09-01"


class Time:
    """A clock that goes on only where something waits; in seconds."""

    def __init__(self) -> None:
        self.waited = 0.0

    def pause(self, seconds: float) -> None:
        self.waited += seconds

    def now(self) -> int:
        return int((1_700_000_000 + self.waited) * 1_000_000)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def ledger(tmp_path: Path, time: Time) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock=Clock(time.now, time.now)) as opened:
        yield opened


def held_elsewhere(ledger: Ledger, run_id: str) -> Lease:
    """The lease of a run on another host."""
    lease = acquire_lease(ledger, DAY, run_id)
    with ledger.write() as connection:
        connection.execute(sa.update(leases).values(machine="another", host="far"))
    return lease


def test_the_lease_of_the_lost_run_expires(ledger: Ledger, time: Time) -> None:
    held_elsewhere(ledger, "lost")
    take_over(ledger, DAY, "again", "lost", time.pause)
    assert time.waited == LEASE_SECONDS
    acquire_lease(ledger, DAY, "again")


def test_a_lost_run_of_this_host_has_no_lease_any_more(ledger: Ledger, time: Time) -> None:
    acquire_lease(ledger, DAY, "lost")
    with ledger.write() as connection:
        connection.execute(sa.update(leases).values(pid=2**22 + 1))
    take_over(ledger, DAY, "again", "lost", time.pause)
    assert time.waited == 0


def test_a_run_that_lives_keeps_the_day(ledger: Ledger, time: Time) -> None:
    lease = held_elsewhere(ledger, "lives")

    def pause(seconds: float) -> None:
        time.pause(seconds)
        assert renew_lease(ledger, lease)

    take_over(ledger, DAY, "again", "lives", pause)
    assert LEASE_SECONDS < time.waited < LEASE_SECONDS + 5
    with ledger.write() as connection:
        connection.execute(sa.update(leases).values(machine="another"))
    with pytest.raises(PartitionBusy, match="run lives"):
        acquire_lease(ledger, DAY, "again")


@pytest.mark.parametrize("replaced", [None, "lost"])
def test_other_runs_are_not_waited_for(ledger: Ledger, time: Time, replaced: str | None) -> None:
    held_elsewhere(ledger, "another")
    take_over(ledger, DAY, "again", replaced, time.pause)
    assert time.waited == 0
