"""kill -9, a full disk, a locked ledger, a lost database: nothing is paid twice, nothing is lost."""

import contextlib
import dataclasses
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger import writer
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import Ledger, LedgerError
from kyc_pipeline.ledger.decisions import list_held
from kyc_pipeline.ledger.leases import LeaseLost, PartitionBusy, acquire_lease, release_lease
from kyc_pipeline.ledger.models import Lease, State
from kyc_pipeline.ledger.queries import read_entries
from kyc_pipeline.ledger.schema import leases
from kyc_pipeline.verify.dispatcher import Timing
from kyc_pipeline.verify.planning import plan_partitions
from kyc_pipeline.verify.summary import Stopped
from tests.effort import tries
from tests.faults import WaitsForTest
from tests.unit.postgres import PostgresServer
from tests.unit.verify import children
from tests.unit.verify.world import DATE, QUICK, TOKEN, World, is_complete

Until = Callable[[Callable[[], bool]], None]
KILLS = tries(20)


def records_by_submission(simulator: Simulator) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for record in simulator.records:
        submission_id = next(tag.value for tag in record.tags if tag.name == "submissionId")
        found.setdefault(submission_id, []).append(record.verification_id)
    return found


def assert_nothing_paid_twice_or_lost(
    world: World, simulator: Simulator, ids: list[str], date: str = DATE
) -> None:
    """Every submission has one row; each completed one is the server's only record of it."""
    records = records_by_submission(simulator)
    assert max(Counter({key: len(found) for key, found in records.items()}).values()) == 1
    rows = world.responses(date)
    assert sorted(rows) == sorted(ids)
    for submission_id, row in rows.items():
        if row["outcome"] == "completed":
            response = msgspec.json.decode(row["response"])["result"]
            assert [response["verificationId"]] == records[submission_id]
            assert {"name": "submissionId", "value": submission_id} in response["tags"]
        else:
            assert submission_id not in records


def test_killed_at_random_moments(world: World, processes: ForkServerContext, until: Until) -> None:
    ids = [f"s-{number:03}" for number in range(300)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 8}
    moments = random.Random(7)
    with running_simulator(token=TOKEN, latency_ms=4) as simulator:
        world.server = simulator.url
        arguments = (str(world.root), simulator.url, world.ledger_url, world.options, DATE)
        for kill in range(KILLS):
            target = simulator.received.total() + moments.choice([0, 1, 5, 9, 14, 20])
            child = processes.Process(target=children.verify, args=(*arguments, f"run-{kill}"))
            child.start()
            until(lambda: simulator.received.total() >= target or not child.is_alive())  # noqa: B023
            child.kill()
            child.join()
        summary = world.verify(run_id="last")
        assert summary.stopped is Stopped.NONE
        assert_nothing_paid_twice_or_lost(world, simulator, ids)
        outcomes = Counter(world.outcomes().values())
        assert set(outcomes) <= {"completed", "uncertain"}
        # A claim that was never sent looks like one that was sent and lost, so it is held.
        assert outcomes["uncertain"] == summary.held == len(list_held(world.ledger))
        assert outcomes["completed"] == len(simulator.records)
        assert max(simulator.received.values()) == 1
    assert world.lake.metadata(VERIFICATION_RESPONSES, DATE)["state"] == "complete"


def test_a_partition_says_that_calls_may_be_under_way(
    sqlite_world: World, processes: ForkServerContext, until: Until
) -> None:
    world = sqlite_world
    world.submit("a", "b")
    with running_simulator(token=TOKEN, latency_ms=60_000) as simulator:
        world.server = simulator.url
        child = processes.Process(
            target=children.verify, args=(str(world.root), simulator.url, "", {}, DATE, "run-1")
        )
        child.start()
        until(lambda: simulator.received.total() == 2)
        child.kill()
        child.join()
    assert world.lake.metadata(VERIFICATION_RESPONSES, DATE)["state"] == "dispatching"
    assert set(world.outcomes().values()) == {"not_attempted"}
    (plan,) = plan_partitions(world.lake, world.ledger, [DATE], world.settings)
    assert (plan.already_paid, plan.held, plan.calls_to_make, plan.open_calls) == (0, 0, 0, 2)
    # These two may have been sent, so the next run makes no call for them.
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify(run_id="run-2")
        assert not simulator.received
    assert set(world.outcomes().values()) == {"uncertain"}


def verify_with_small_files(world: World, processes: ForkServerContext, limit: int) -> str:
    """The message of a run in a process whose files are limited to `limit` bytes."""
    receive, send = processes.Pipe(duplex=False)
    child = processes.Process(
        target=children.verify_with_small_files,
        args=(limit, str(world.root), world.server, world.ledger_url, send),
    )
    child.start()
    send.close()
    message: str = receive.recv()
    child.join()
    assert "\n" not in message
    return message


def test_a_disk_that_is_full_for_the_ledger(sqlite_world: World, processes: ForkServerContext) -> None:
    world = sqlite_world
    ids = [f"s-{number:03}" for number in range(60)]
    world.submit(*ids)
    received = []
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        # From a ledger that cannot be created to one that fills up between calls.
        for kilobytes in (0, 64, 104, 128, 144, 160, 512):
            message = verify_with_small_files(world, processes, kilobytes * 1024)
            assert "the ledger" in message or message == "done"
            received.append(simulator.received.total())
        assert received[0] == 0
        assert any(0 < count < len(ids) for count in received)
        world.verify(run_id="last")
        assert_nothing_paid_twice_or_lost(world, simulator, ids)
        assert max(simulator.received.values()) == 1


def test_a_disk_that_is_full_for_the_lake(
    tmp_path: Path, postgres_url: str, processes: ForkServerContext
) -> None:
    """The ledger is on a server, so only the lake's writes fail."""
    world = World(tmp_path, ledger_url=postgres_url)
    ids = [f"s-{number:02}" for number in range(40)]
    world.submit(*ids)
    table = Path(world.lake.path(VERIFICATION_RESPONSES, DATE))
    with running_simulator(token=TOKEN) as simulator, world.ledger:
        world.server = simulator.url
        no_room = f"cannot write verification_responses of {DATE} (File too large)"
        assert "identity.json (File too large)" in verify_with_small_files(world, processes, 0)
        assert no_room in verify_with_small_files(world, processes, 1_000)
        assert not simulator.received
        assert not table.exists()
        # There is room for the table before the calls, but not for the one with the responses.
        message = verify_with_small_files(world, processes, 8_000)
        assert no_room in message
        assert "every response is in the ledger" in message
        assert set(world.outcomes().values()) == {"not_attempted"}
        assert dict(simulator.received) == dict.fromkeys(ids, 1)
        assert [path.name for path in table.parent.iterdir()] == [table.name]
        summary = world.verify(run_id="last")
        assert (summary.calls, is_complete(summary)) == (0, True)
        assert_nothing_paid_twice_or_lost(world, simulator, ids)


@contextlib.contextmanager
def another_process(world: World, processes: ForkServerContext) -> Iterator[Callable[[], None]]:
    """What makes another process, which is connected already, lock the ledger until the block ends."""
    here, there = processes.Pipe()
    url = world.settings.kyc_ledger_url.get_secret_value()
    other = processes.Process(target=children.lock_ledger, args=(url, there))
    other.start()
    assert here.recv() == "connected"

    def lock() -> None:
        here.send("lock")
        assert here.recv() == "locked"

    try:
        yield lock
    finally:
        here.send("enough")
        other.join()
    assert other.exitcode == 0


def test_a_ledger_that_stays_locked_ends_the_run_before_any_call(
    world: World, processes: ForkServerContext
) -> None:
    world.submit("a")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        acquire_lease(world.ledger, "2000-01-01", "make the ledger")
        impatient = World(world.root, world.server, world.ledger_url)
        impatient.ledger = Ledger(world.settings.kyc_ledger_url, busy_timeout=0.2)
        with another_process(world, processes) as lock, impatient.ledger:
            lock()
            with pytest.raises(LedgerError, match=r"(?i)lock"):
                impatient.verify()
        assert not simulator.received
        assert is_complete(world.verify())


def test_a_ledger_locked_in_mid_run_is_waited_for(
    world: World, processes: ForkServerContext, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"s-{number}" for number in range(30)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 2}
    patient = dataclasses.replace(QUICK, ledger_patience=60)
    waits, failed = WaitsForTest(), threading.Event()

    def commit_or_note(*arguments: Any) -> frozenset[str]:
        try:
            return commit(*arguments)
        except LedgerError:
            failed.set()
            raise

    monkeypatch.setattr(writer, "commit", commit_or_note)
    with (
        running_simulator(token=TOKEN, faults={key: [waits] for key in ids}) as simulator,
        Ledger(world.settings.kyc_ledger_url, busy_timeout=0.2) as impatient,
    ):
        world.server = simulator.url
        acquire_lease(impatient, "2000-01-01", "make the ledger")
        world.ledger = impatient  # a cached property may be set

        def lock_for_a_while() -> None:
            with another_process(world, processes) as lock:
                connected.set()
                until(lambda: len(simulator.records) == 2)
                lock()
                waits.go.set()
                until(failed.is_set)

        connected = threading.Event()
        locker = threading.Thread(target=lock_for_a_while)
        locker.start()
        connected.wait()
        summary = world.verify(timing=patient)
        locker.join()
        assert is_complete(summary)
        assert max(simulator.received.values()) == 1
        assert_nothing_paid_twice_or_lost(world, simulator, ids)


def test_the_database_is_lost_in_mid_run(
    tmp_path: Path, postgres: PostgresServer, postgres_url: str, until: Until
) -> None:
    world = World(tmp_path, ledger_url=postgres_url)
    ids = [f"s-{number:02}" for number in range(60)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 4}
    patient = Timing(look_ups=(0.0, 0.05), back_off=0.01, back_off_cap=0.05, ledger_patience=60)
    with running_simulator(token=TOKEN, latency_ms=20) as simulator:
        world.server = simulator.url

        def restart() -> None:
            until(lambda: simulator.received.total() >= 10)
            postgres.stop()
            postgres.start()

        restarting = threading.Thread(target=restart)
        restarting.start()
        with world.ledger:
            summary = world.verify(timing=patient)
            restarting.join()
            assert is_complete(summary)
            assert max(simulator.received.values()) == 1
            assert_nothing_paid_twice_or_lost(world, simulator, ids)


def test_two_runs_of_one_partition_at_once(world: World, until: Until) -> None:
    ids = [f"s-{number}" for number in range(20)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 2}
    waits = WaitsForTest()
    with running_simulator(token=TOKEN, faults={key: [waits] for key in ids}) as simulator:
        world.server = simulator.url
        first = threading.Thread(target=world.verify)
        first.start()
        until(lambda: len(simulator.records) == 2)
        with pytest.raises(PartitionBusy, match=rf"partition {DATE} .* run run-1 \(process \d+ on "):
            world.verify(run_id="run-2")
        waits.go.set()
        first.join()
        assert dict(simulator.received) == dict.fromkeys(ids, 1)
        assert_nothing_paid_twice_or_lost(world, simulator, ids)


def test_processes_that_start_one_partition_at_once(world: World, processes: ForkServerContext) -> None:
    ids = [f"s-{number:02}" for number in range(40)]
    world.submit(*ids)
    with running_simulator(token=TOKEN, latency_ms=20) as simulator:
        world.server = simulator.url
        arguments = (str(world.root), simulator.url, world.ledger_url, world.options, DATE)
        runs = [
            processes.Process(target=children.verify_or_busy, args=(*arguments, f"run-{number}"))
            for number in range(4)
        ]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        # A run during another run was refused; a later one found nothing to do.
        assert 0 in {run.exitcode for run in runs}
        assert {run.exitcode for run in runs} <= {0, children.BUSY}
        assert dict(simulator.received) == dict.fromkeys(ids, 1)
        assert_nothing_paid_twice_or_lost(world, simulator, ids)


def expiry(ledger: Ledger) -> int:
    with ledger.read() as connection:
        return connection.execute(sa.select(sa.func.max(leases.c.expires_at))).scalar_one() or 0


def test_a_run_renews_its_lease_and_one_that_lost_it_makes_no_further_call(
    world: World, until: Until
) -> None:
    """Another host took over the partition while this one, with calls in flight, was suspended."""
    ids = [f"s-{number:02}" for number in range(20)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 3}
    url, ended = world.settings.kyc_ledger_url, []
    waits = WaitsForTest()
    with (
        running_simulator(token=TOKEN, faults={key: [waits] for key in ids}) as simulator,
        Ledger(url, lease_seconds=0.3) as short,
    ):
        world.server = simulator.url
        sleeper = World(world.root, simulator.url, world.ledger_url, world.options)
        sleeper.ledger = short  # a cached property may be set

        def run() -> None:
            try:
                sleeper.verify(run_id="sleeper")
            except LeaseLost as error:
                ended.append(str(error))

        sleeping = threading.Thread(target=run)
        sleeping.start()
        until(lambda: len(simulator.records) == 3)
        first = expiry(world.ledger)
        until(lambda: expiry(world.ledger) > first)

        def taken_over() -> bool:
            with world.ledger.write() as connection:
                connection.execute(sa.update(leases).values(machine="another", expires_at=0))
            try:
                taker.append(acquire_lease(world.ledger, DATE, "taker"))
            except PartitionBusy:  # it was renewed in between
                return False
            return True

        taker: list[Lease] = []
        until(taken_over)
        waits.go.set()
        sleeping.join()
        (message,) = ended
        assert message.startswith(
            f"partition {DATE} was taken over by another run: nothing that was recorded is lost"
        )
        assert simulator.received.total() == 3
        # The responses of the calls in flight were recorded, though they came after the loss.
        states = Counter(entry.state for entry in read_entries(world.ledger, ids).values())
        assert states.pop(State.COMPLETED) == 3
        assert states.keys() <= {State.FAILED}  # claimed, but not sent after the loss
        release_lease(world.ledger, taker[0])
        world.options = {"deepxl_max_concurrency": 16}
        assert is_complete(world.verify(run_id="run-2"))
        assert dict(simulator.received) == dict.fromkeys(ids, 1)
        assert_nothing_paid_twice_or_lost(world, simulator, ids)
