"""A run that was suspended: it sends nothing that is another run's by now, and loses no answer."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import children
import pytest
import sqlalchemy as sa
from world import DATE, TOKEN, World

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.decisions import resolve_held
from kyc_pipeline.ledger.leases import PartitionBusy
from kyc_pipeline.ledger.schema import attempts, leases
from kyc_pipeline.ledger.times import Clock, now, since_boot

Until = Callable[[Callable[[], bool]], None]


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextmanager
def stopped_before_its_upload(
    world: World, processes: ForkServerContext, until: Until
) -> Iterator[tuple[int, Any]]:
    """A run in another process, stopped between claim and upload: its process id, and its messages."""
    here, there = processes.Pipe()
    arguments = (str(world.root), world.server, world.ledger_url, there)
    child = processes.Process(target=children.verify_and_stop_before_the_upload, args=arguments)
    child.start()
    there.close()
    pid = here.recv()
    try:
        until(lambda: is_stopped(pid))
        yield pid, here
    finally:
        child.kill()
        child.join()


def test_a_suspended_run_does_not_send_what_another_run_has_taken(
    world: World, processes: ForkServerContext, until: Until
) -> None:
    world.submit("a")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        with stopped_before_its_upload(world, processes, until) as (pid, messages):
            with world.ledger.write() as connection:
                # To the others, its process is on another machine.
                connection.execute(sa.update(leases).values(machine="another", expires_at=0))
            assert world.verify(run_id="another").held == 1
            # The operator asked DeepXL, which knows nothing of it.
            resolve_held(world.ledger, "a", "retry", "operator")
            assert world.verify(run_id="another").is_complete
            os.kill(pid, signal.SIGCONT)
            assert messages.recv().startswith(f"partition {DATE} was taken over by another run")
        assert dict(simulator.received) == {"a": 1}
        assert len(simulator.records) == 1
    assert world.outcomes() == {"a": "completed"}
    with world.ledger.read() as connection:
        rows = connection.execute(
            sa.select(attempts.c.result, attempts.c.billable, attempts.c.error).order_by(attempts.c.number)
        ).all()
    assert rows[0][:2] == ("not_processed", 0)
    assert rows[0][2].startswith("submission a: not sent: partition")
    assert rows[1][:2] == ("answered", 1)


def test_a_stopped_run_keeps_its_day_and_goes_on(
    sqlite_world: World, processes: ForkServerContext, until: Until
) -> None:
    world = sqlite_world
    world.submit("a")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        with stopped_before_its_upload(world, processes, until) as (pid, messages):
            clock = Clock(lambda: now() + children.DAY, lambda: since_boot() + children.DAY)
            world.ledger = Ledger(world.settings.kyc_ledger_url, clock=clock)  # type: ignore[misc]
            with pytest.raises(PartitionBusy, match=rf"process is stopped.*`kill -CONT {pid}`"):
                world.verify(run_id="another")
            assert not simulator.received
            os.kill(pid, signal.SIGCONT)
            assert messages.recv() == "done"
        assert dict(simulator.received) == {"a": 1}
    assert world.outcomes() == {"a": "completed"}
