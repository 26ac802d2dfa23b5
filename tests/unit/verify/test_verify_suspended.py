"""A run that was suspended: it sends nothing that is another run's by now, and loses no response."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from aiohttp import web

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.decisions import resolve_held
from kyc_pipeline.ledger.leases import PartitionBusy
from kyc_pipeline.ledger.schema import attempts, leases
from kyc_pipeline.ledger.times import Clock, now, since_boot
from tests.unit.verify import children
from tests.unit.verify.world import DATE, TOKEN, World, is_complete

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
            assert is_complete(world.verify(run_id="another"))
            os.kill(pid, signal.SIGCONT)
            assert messages.recv().startswith(f"partition {DATE} was taken over by another run")
        assert dict(simulator.received) == {"a": 1}
        assert len(simulator.records) == 1
    assert world.outcomes() == {"a": "completed"}
    with world.ledger.read() as connection:
        rows = connection.execute(
            sa.select(attempts.c.result, attempts.c.billable, attempts.c.error).order_by(attempts.c.number)
        ).all()
    assert rows[0][:2] == ("not_sent", 0)
    assert rows[0][2].startswith("submission a: not sent: partition")
    assert rows[1][:2] == ("answered", 1)


@dataclass
class RespondsOnRequest:
    """Processes the call, reports it, and responds on request, with more than one read takes."""

    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go: threading.Event = field(default_factory=threading.Event)
    record = True
    early = False

    async def play(self, request: web.Request, body: bytes, stopping: asyncio.Event) -> web.StreamResponse:
        self.arrived.release()
        await asyncio.to_thread(self.go.wait)
        return web.Response(body=body + b" " * 500_000, content_type="application/json")


def test_responses_that_arrived_while_the_run_was_stopped_are_read_before_time_is_up(
    sqlite_world: World, processes: ForkServerContext, until: Until
) -> None:
    world = sqlite_world
    ids = [f"s-{number}" for number in range(4)]
    world.submit(*ids)
    seconds = 3.0
    waits = RespondsOnRequest()
    with running_simulator(token=TOKEN, faults={key: [waits] for key in ids}) as simulator:
        options = {"deepxl_timeout_seconds": seconds}
        child = processes.Process(
            target=children.verify, args=(str(world.root), simulator.url, "", options, DATE, "run")
        )
        child.start()
        assert child.pid is not None
        pid = child.pid
        for _ in ids:
            assert waits.arrived.acquire(timeout=120)
        os.kill(pid, signal.SIGSTOP)
        until(lambda: is_stopped(pid))
        waits.go.set()
        time_is_up = time.monotonic() + seconds
        until(lambda: time.monotonic() > time_is_up)
        os.kill(pid, signal.SIGCONT)
        child.join()
        assert child.exitcode == 0
        assert dict(simulator.received) == dict.fromkeys(ids, 1)
    assert set(world.outcomes().values()) == {"completed"}
    with world.ledger.read() as connection:
        results = connection.execute(sa.select(attempts.c.result)).scalars().all()
    assert results == ["answered"] * len(ids)  # and not found by a look-up


def test_a_stopped_run_keeps_its_day_and_goes_on(
    sqlite_world: World, processes: ForkServerContext, until: Until
) -> None:
    world = sqlite_world
    world.submit("a")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        with stopped_before_its_upload(world, processes, until) as (pid, messages):
            clock = Clock(lambda: now() + children.DAY, lambda: since_boot() + children.DAY)
            world.ledger = Ledger(world.settings.kyc_ledger_url, clock=clock)
            with pytest.raises(PartitionBusy, match=rf"process is stopped.*`kill -CONT {pid}`"):
                world.verify(run_id="another")
            assert not simulator.received
            os.kill(pid, signal.SIGCONT)
            assert messages.recv() == "done"
        assert dict(simulator.received) == {"a": 1}
    assert world.outcomes() == {"a": "completed"}
