"""Leases and clocks: who keeps a lease, who loses it, and by which clock, on both databases."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kyc_pipeline.ledger.database import LEASE_SECONDS, Ledger
from kyc_pipeline.ledger.leases import HeldLease, LeaseLost, PartitionBusy, acquire_lease
from kyc_pipeline.ledger.process import Life, ProcessIdentity
from kyc_pipeline.ledger.schema import leases
from kyc_pipeline.ledger.times import Clock

DATE = "2024-09-01"
DAY = 86_400.0
ME = ProcessIdentity.current()
OTHER_CONTAINER = f"{ME.boot}/pid:[1]/{ME.machine.split('/')[2]}"
OTHER_BOOT = f"other-boot/{'/'.join(ME.machine.split('/')[1:])}"
OTHER_MACHINE = "unknown"


class Clocks:
    """Both clocks of a machine, under the test's control. In seconds."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000.0
        self.boot = 5_000.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.boot += seconds

    def open(self, url: str) -> Ledger:
        return Ledger(url, clock=Clock(lambda: int(self.wall * 1e6), lambda: int(self.boot * 1e6)))


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def ledger(ledger_url: str, clocks: Clocks) -> Iterator[Ledger]:
    with clocks.open(ledger_url) as opened:
        yield opened


def change(ledger: Ledger, **values: Any) -> None:
    """Changes all leases, as if somebody else had written them."""
    with ledger.write() as connection:
        connection.execute(sa.update(leases).values(**values))


# A process that takes the lease, tells its id and then waits to be ended.
HOLDER = """
import sys
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import acquire_lease
acquire_lease(Ledger(sys.argv[1]), "2024-09-01", "the-holder")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(ledger_url: str) -> Iterator["subprocess.Popen[str]"]:
    arguments = [sys.executable, "-c", HOLDER, ledger_url]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def later(url: str, seconds: float) -> Ledger:
    """The ledger of somebody who comes later, by clocks that agree with the real ones."""
    real = Clock()
    shift = int(seconds * 1e6)
    return Ledger(url, clock=Clock(lambda: real.now() + shift, lambda: real.since_boot() + shift))


def test_a_stopped_process_keeps_its_lease_and_the_way_out_is_said(
    ledger_url: str, holder: "subprocess.Popen[str]"
) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    with later(ledger_url, DAY) as ledger:
        with pytest.raises(PartitionBusy) as refused:
            acquire_lease(ledger, DATE, "run")
        message = str(refused.value)
        assert f"run the-holder (process {holder.pid} on {ME.host}): the process is stopped" in message
        assert f"`kill -CONT {holder.pid}`" in message
        assert f"`kill -KILL {holder.pid}`" in message
        holder.kill()
        holder.wait()
        assert acquire_lease(ledger, DATE, "run").run_id == "run"


def test_a_running_process_keeps_a_lease_that_it_did_not_renew(
    ledger_url: str, holder: "subprocess.Popen[str]"
) -> None:
    with later(ledger_url, DAY) as ledger, pytest.raises(PartitionBusy) as refused:
        acquire_lease(ledger, DATE, "run")
    assert "it should have renewed its lease 863" in str(refused.value)
    assert f"`kill -KILL {holder.pid}`" in str(refused.value)


def test_a_killed_process_that_nobody_has_waited_for_is_dead(
    ledger_url: str, holder: "subprocess.Popen[str]"
) -> None:
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    with Ledger(ledger_url) as ledger:
        assert acquire_lease(ledger, DATE, "run").run_id == "run"


@pytest.mark.parametrize("step", [-3 * DAY, 3 * DAY])
def test_a_wall_clock_that_is_set_changes_nothing_on_the_holders_machine(
    ledger: Ledger, clocks: Clocks, step: float
) -> None:
    acquire_lease(ledger, DATE, "run")
    change(ledger, machine=OTHER_CONTAINER)
    clocks.wall += step
    with pytest.raises(PartitionBusy, match=f"its lease expires in {LEASE_SECONDS:.0f} s"):
        acquire_lease(ledger, DATE, "another")
    clocks.passes(LEASE_SECONDS)
    acquire_lease(ledger, DATE, "another")


def test_time_in_which_the_machine_sleeps_counts(ledger: Ledger, clocks: Clocks) -> None:
    acquire_lease(ledger, DATE, "run")
    change(ledger, machine=OTHER_CONTAINER)
    clocks.boot += DAY  # while it slept; its wall clock was not put right yet
    acquire_lease(ledger, DATE, "another")


@pytest.mark.parametrize("machine", [OTHER_BOOT, OTHER_MACHINE])
def test_a_lease_of_a_wrong_clock_blocks_no_longer_than_a_lease_lasts(
    ledger: Ledger, clocks: Clocks, machine: str
) -> None:
    clocks.wall += 3 * DAY
    acquire_lease(ledger, DATE, "run")
    change(ledger, machine=machine)
    clocks.wall -= 3 * DAY
    clocks.boot = 1.0  # after a reboot
    if ledger.file is None or machine == OTHER_MACHINE:
        with pytest.raises(PartitionBusy, match="if it has already ended, its lease expires in 60 s"):
            acquire_lease(ledger, DATE, "another")
        clocks.passes(LEASE_SECONDS / 2)
        with pytest.raises(PartitionBusy, match="its lease expires in 30 s"):
            acquire_lease(ledger, DATE, "another")
        clocks.passes(LEASE_SECONDS / 2)
    acquire_lease(ledger, DATE, "another")


def test_a_lease_of_before_a_reboot_does_not_block(tmp_path: Path, clocks: Clocks) -> None:
    with clocks.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        acquire_lease(ledger, DATE, "run")
        change(ledger, machine=OTHER_BOOT, host="its-name-of-then")
        acquire_lease(ledger, DATE, "another")


def test_a_lease_written_by_an_older_version_is_judged_by_the_wall_clock(
    ledger: Ledger, clocks: Clocks
) -> None:
    acquire_lease(ledger, DATE, "run")
    change(ledger, machine=f"{ME.boot}/pid:[1]", boot_expires_at=None)
    with pytest.raises(PartitionBusy):
        acquire_lease(ledger, DATE, "another")
    clocks.wall += LEASE_SECONDS
    acquire_lease(ledger, DATE, "another")


def test_a_holder_that_slept_asks_the_ledger_before_it_sends(ledger: Ledger, clocks: Clocks) -> None:
    held = HeldLease.acquire(ledger, DATE, "sleeper")
    held.confirm()
    clocks.boot += DAY
    clocks.wall += DAY
    held.confirm()  # nobody took it, so it is renewed
    clocks.passes(LEASE_SECONDS / 2)
    held.confirm()
    change(ledger, machine=OTHER_CONTAINER)
    clocks.passes(DAY)
    acquire_lease(ledger, DATE, "another")
    with pytest.raises(LeaseLost, match="taken over by another run"):
        held.confirm()


def test_a_holder_whose_clocks_stood_still_asks_a_ledger_on_a_server(
    postgres_url: str, clocks: Clocks
) -> None:
    """A paused virtual machine: its own clocks do not show that it was away."""
    frozen = Clocks()
    with frozen.open(postgres_url) as of_sleeper, clocks.open(postgres_url) as other:
        held = HeldLease.acquire(of_sleeper, DATE, "sleeper")
        held.confirm()
        change(other, machine=OTHER_MACHINE)
        clocks.passes(DAY)
        acquire_lease(other, DATE, "another")
        with pytest.raises(LeaseLost):
            held.confirm()


def test_a_lease_is_confirmed_without_the_ledger_only_while_it_is_surely_held(
    tmp_path: Path, clocks: Clocks
) -> None:
    with clocks.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        held = HeldLease.acquire(ledger, DATE, "run")
        assert held.is_sure
        clocks.boot += LEASE_SECONDS
        assert not held.is_sure
        assert held.renew()
        assert held.is_sure
        clocks.wall += LEASE_SECONDS
        assert not held.is_sure


def test_only_what_is_surely_gone_is_dead() -> None:
    dead = dataclasses.replace(ME, pid=2**22 + 1)
    assert dead.life() is Life.DEAD
    assert ME.life() is Life.RUNNING
    assert dataclasses.replace(ME, started="1").life() is Life.DEAD
    boot, pids, times = ME.machine.split("/")
    for machine in (
        "",
        "another",
        f"{boot}//{times}",
        f"{boot}/{pids}/",
        f"{boot}/pid:[1]/{times}",
        OTHER_BOOT,
    ):
        assert dataclasses.replace(dead, machine=machine).life() is Life.UNKNOWN
    assert dataclasses.replace(dead, started="").life() is Life.UNKNOWN


IDENTIFY = """
import dataclasses, json, sys
from kyc_pipeline.ledger.process import ProcessIdentity
me = ProcessIdentity.current()
other = ProcessIdentity(**json.loads(sys.argv[1]))
print(json.dumps([dataclasses.asdict(me), other.life().value, other.shares_boot_clock(me)]))
"""


def seen_from(*command: str, identity: ProcessIdentity) -> list[Any]:
    """What a process that `command` starts knows: itself, the state of `identity`, whether clocks agree."""
    arguments = [*command, sys.executable, "-c", IDENTIFY, json.dumps(dataclasses.asdict(identity))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout)
    return found


needs_root = pytest.mark.skipif(
    subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], check=False).returncode != 0,
    reason="only root may hide processes and make pid namespaces, and not in a chroot",
)


@needs_root
def test_a_process_that_proc_hides_is_not_dead() -> None:
    hide = "mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid=65534 --regid=65534 --clear-groups"
    command = ("unshare", "--mount", "sh", "-c", f'{hide} "$@"', "sh")
    assert seen_from(*command, identity=ME)[1] == "unknown"
    assert seen_from(*command, identity=dataclasses.replace(ME, pid=2**22 + 1))[1] == "dead"


@needs_root
def test_nothing_is_known_of_processes_across_pid_namespaces() -> None:
    for mount in ([], ["--mount-proc"]):
        inside, life, shares_clock = seen_from("unshare", "--pid", "--fork", *mount, identity=ME)
        assert life == "unknown"
        assert ProcessIdentity(**inside).life() is Life.UNKNOWN
        # Without a /proc of its own it does not even know where it is.
        assert shares_clock is bool(mount)
