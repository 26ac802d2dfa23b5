"""A day in several processes: as with one, nothing is sent twice or lost, and one stop reaches all."""

import contextlib
import logging
import os
import pickle
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyc_pipeline.deepxl.call_errors import AccessDenied, ContractBroken
from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.faults import Hangs, Responds
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger.leases import LeaseLost, PartitionBusy, acquire_lease, release_lease, share
from kyc_pipeline.ledger.queries import read_spend
from kyc_pipeline.ledger.times import SYSTEM_CLOCK
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify import shard as sharding
from kyc_pipeline.verify import shard_process, shards
from kyc_pipeline.verify.budget import CallBudget, LentBudget
from kyc_pipeline.verify.messages import Note
from kyc_pipeline.verify.shard import Shard, shards_of
from kyc_pipeline.verify.shards import ShardLost
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import Progress, Stopped
from kyc_pipeline.vocabulary import Outcome
from tests.effort import tries
from tests.faults import WaitsForTest
from tests.shard_processes import runs, shard_processes
from tests.unit.verify import children
from tests.unit.verify.test_verify_crashes import assert_nothing_paid_twice_or_lost
from tests.unit.verify.world import DATE, TOKEN, World, is_complete

Until = Callable[[Callable[[], bool]], None]
IDS = [f"s-{number:03}" for number in range(100)]
TWO = {"kyc_shards": 2, "deepxl_max_concurrency": 4}
DIFFERS = {"requested_at", "responded_at", "latency_ms", "response"}
"""Columns of a response that differ between two runs."""


@pytest.fixture(autouse=True)
def _small_days_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "SUBMISSIONS_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(sharding, "CALLS_WORTH_A_PROCESS", 1)


@contextlib.contextmanager
def day_of(world: World, options: dict[str, Any], **simulation: Any) -> Iterator[Simulator]:
    """Submits the day; runs the simulator that it is verified with."""
    world.submit(*IDS)
    world.options = options
    with running_simulator(token=TOKEN, **simulation) as simulator:
        world.server = simulator.url
        yield simulator


def verify_in_thread(world: World, **arguments: Any) -> tuple[threading.Thread, list[Any]]:
    """Starts a run; the list gets its summary or its error."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(world.verify_anyway(**arguments))
        except KycError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ended


@given(st.lists(st.text(min_size=1, max_size=64), unique=True), st.integers(1, 64))
def test_each_submission_is_in_exactly_one_shard(ids: list[str], count: int) -> None:
    parts = [Shard(number, count) for number in range(1, count + 1)]
    for submission_id in ids:
        assert sum(part.has(submission_id) for part in parts) == 1


def test_the_shard_of_a_submission_never_changes() -> None:
    """As `b2sum -l 64` says: it must not depend on the process, nor on the version of Python."""
    assert [next(n for n in (1, 2, 3, 4) if Shard(n, 4).has(key)) for key in ("a", "s-1", "ü")] == [4, 2, 4]


@given(st.integers(0, 5000), st.integers(1, 64))
def test_shares_add_up(total: int, count: int) -> None:
    shares = [Shard(number, count).share(total) for number in range(1, count + 1)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("to_settle", "processes", "concurrency", "expected"),
    [
        (0, 4, 1024, 1),
        (9999, 4, 1024, 1),
        (10_000, 4, 1024, 2),
        (10**7, 4, 1024, 4),
        (10**7, 1, 1024, 1),
        (10**7, 4, 16, 1),
        (10**7, 4, 200, 3),
    ],
)
def test_small_days_have_fewer_shards(
    monkeypatch: pytest.MonkeyPatch, to_settle: int, processes: int, concurrency: int, expected: int
) -> None:
    monkeypatch.undo()
    settings = Settings(_env_file=None, kyc_shards=processes, deepxl_max_concurrency=concurrency)
    found = shards_of(to_settle, settings)
    assert [(each.number, each.count) for each in found] == [(n, expected) for n in range(1, expected + 1)]


def test_a_day_in_two_processes_has_the_rows_and_figures_of_a_day_in_one(
    tmp_path: Path, ledger_url: str
) -> None:
    rows: list[object] = []
    figures: list[object] = []
    seen: list[Progress] = []
    with running_simulator(token=TOKEN) as simulator:
        for options, url in ({}, ""), (TWO, ledger_url):
            world = World(
                tmp_path / str(len(rows)), simulator.url, url, {"deepxl_price_per_call": "0.5", **options}
            )
            world.submit(*IDS)
            budget = CallBudget(150)  # more than are needed
            with world.ledger:
                summary = world.verify(progress=seen.append, budget=budget)
            assert [budget.take() for _ in range(51)] == [True] * 50 + [False]
            figures.append((str(summary), summary.calls, summary.billable_calls, dict(summary.outcomes)))
            rows.append(
                [{k: v for k, v in row.items() if k not in DIFFERS} for row in world.responses().values()]
            )
        assert dict(simulator.received) == dict.fromkeys(IDS, 2)
    assert rows[0] == rows[1]
    assert figures[0] == figures[1]
    assert (seen[-1].done, seen[-1].total, seen[-1].billable_calls) == (len(IDS), len(IDS), len(IDS))
    assert ", 2 processes" in str(seen[-1])
    assert "processes" not in str(seen[0])
    assert not shard_processes()


def test_the_budget_of_a_run_is_one_for_all_its_processes_whatever_disturbs_them(
    sqlite_world: World, until: Until
) -> None:
    """A terminal and systemd signal all processes at once; only the run decides what that means."""
    world, waits, budget = sqlite_world, WaitsForTest(), CallBudget(50)
    with day_of(world, TWO, faults={key: [waits] for key in IDS}) as simulator:
        thread, ended = verify_in_thread(world, budget=budget)
        until(lambda: len(shard_processes()) == 2)
        for pid in shard_processes():
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        until(lambda: len(simulator.records) == 4)
        another = World(world.root, simulator.url, world.ledger_url, TWO | {"kyc_shards": 3})
        with another.ledger, pytest.raises(PartitionBusy, match=rf"partition {DATE} .* run run-1 "):
            another.verify(run_id="run-2")
        waits.go.set()
        thread.join()
        (summary,) = ended
        assert summary.stopped is Stopped.BUDGET
        assert simulator.received.total() == summary.calls == 50
        assert budget.is_used_up
        world.options = {}
        assert is_complete(world.verify(run_id="run-3"))
        assert dict(simulator.received) == dict.fromkeys(IDS, 1)


def test_the_budget_of_a_day_is_one_for_all_its_processes_and_their_logs_are_the_runs(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = sqlite_world
    take = shards._Shards._take

    def noisy(run: Any, process: Any, message: Any) -> None:
        take(run, process, Note("kyc_pipeline.verify.rate_limit", logging.WARNING, "the next call waits"))
        take(run, process, message)

    monkeypatch.setattr(shards._Shards, "_take", noisy)
    with day_of(world, TWO | {"deepxl_max_calls_per_day": 50}) as simulator:
        summary = world.verify()
        assert simulator.received.total() == summary.calls == 50
    assert summary.stopped is Stopped.DAY_BUDGET
    assert "is used up; it begins again at" in summary.why
    assert ("kyc_pipeline.verify.rate_limit", logging.WARNING, "the next call waits") in caplog.record_tuples


def test_a_lent_budget_is_never_exceeded_whoever_takes_from_it(processes: ForkServerContext) -> None:
    budget = CallBudget(1000)
    taken: list[int] = []
    with budget.lent() as file:
        assert file is not None
        lent = LentBudget(file)

        def take() -> None:
            taken.append(sum(lent.take() for _ in range(200)))

        threads = [threading.Thread(target=take) for _ in range(4)]
        others = [processes.Process(target=children.take_all, args=(os.getpid(), file)) for _ in range(2)]
        for other in others:
            other.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for other in others:
            other.join()
        lent.give_back()
    assert taken == [200] * 4
    assert [other.exitcode for other in others] == [0, 0]
    assert budget.take()
    assert budget.is_used_up


def test_a_killed_process_leaves_its_part_and_the_next_run_does_it(sqlite_world: World, until: Until) -> None:
    world, waits = sqlite_world, WaitsForTest()
    of_lost = [key for key in IDS if Shard(2, 2).has(key)]
    with day_of(world, TWO, faults={key: [waits] for key in of_lost[10:]}) as simulator:
        thread, ended = verify_in_thread(world)
        until(lambda: sum(simulator.received[key] for key in of_lost[10:]) == 2)
        os.kill(shard_processes()[-1], signal.SIGKILL)  # the first one may have ended
        waits.go.set()
        thread.join()
        (summary,) = ended
        assert isinstance(summary.error, ShardLost)
        assert summary.fault is not None
        assert summary.fault.endswith("was killed by SIGKILL: check whether memory is short")
        assert summary.stopped is Stopped.ERROR
        outcomes = Counter(world.outcomes().values())
        assert outcomes["not_attempted"] > 0
        # Also what the lost one had not reported yet. A claim that it did not send counts, too.
        spent = read_spend(world.ledger, DATE)
        assert (summary.calls, summary.billable_calls) == (spent.calls, spent.billable_calls)
        assert simulator.received.total() <= summary.calls <= simulator.received.total() + 2
        # The other one went on, and what the lost one had in flight is held until it is looked up.
        assert outcomes["completed"] >= len(IDS) - len(of_lost)
        assert outcomes["uncertain"] <= 2 * 2  # and responses that it had not recorded yet
        assert world.lake.metadata(VERIFICATION_RESPONSES, DATE)["state"] == "complete"
        world.options = {}
        again = world.verify(run_id="run-2")
        assert_nothing_paid_twice_or_lost(world, simulator, IDS)
        assert set(again.outcomes) <= {Outcome.COMPLETED, Outcome.UNCERTAIN}
        assert max(simulator.received.values()) == 1


def test_the_processes_of_a_killed_run_end_with_it(
    sqlite_world: World, processes: ForkServerContext, until: Until
) -> None:
    world = sqlite_world
    world.submit(*IDS)
    with running_simulator(token=TOKEN, faults={key: [Hangs(record=True)] for key in IDS}) as simulator:
        arguments = (str(world.root), simulator.url, "", TWO, DATE, "run-1")
        run = processes.Process(target=children.verify_in_shards, args=arguments)
        run.start()
        until(lambda: len(simulator.records) == 4)
        mine = shard_processes(run.pid or 0)
        assert len(mine) == 2
        run.kill()
        run.join()
        until(lambda: not any(map(runs, mine)))
        # Nobody waits for the lease: its holder is dead. What was in flight is looked up, nothing is sent.
        world.server, world.options = simulator.url, {"deepxl_max_calls_per_run": 0}
        summary = world.verify(run_id="run-2")
        assert (summary.adopted, summary.calls) == (4, 0)


def test_kills_at_random_moments_and_another_number_of_processes_each_time(
    world: World, processes: ForkServerContext, until: Until
) -> None:
    world.submit(*IDS)
    moments = random.Random(21)
    with running_simulator(token=TOKEN, latency_ms=5) as simulator:
        world.server = simulator.url
        for kill in range(tries(8)):
            options = {"kyc_shards": moments.choice([2, 2, 3]), "deepxl_max_concurrency": 8}
            arguments = (str(world.root), simulator.url, world.ledger_url, options, DATE, f"run-{kill}")
            run = processes.Process(target=children.verify_in_shards, args=arguments)
            run.start()
            target = simulator.received.total() + moments.choice([0, 1, 5, 9, 14])
            until(lambda: simulator.received.total() >= target or not run.is_alive())  # noqa: B023
            victims = shard_processes(run.pid or 0) if moments.random() < 0.5 else []
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(moments.choice(victims), signal.SIGKILL)
            else:
                run.kill()
            run.join()
        assert world.verify(run_id="last").stopped is Stopped.NONE
        assert_nothing_paid_twice_or_lost(world, simulator, IDS)
        assert max(simulator.received.values()) == 1


def test_a_stop_reaches_all_processes(sqlite_world: World, until: Until) -> None:
    world, stop = sqlite_world, StopFlag()
    with day_of(world, TWO, latency_ms=50) as simulator:
        thread, ended = verify_in_thread(world, stop=stop)
        until(lambda: simulator.received.total() >= 12)
        stop.drain()
        thread.join()
        (summary,) = ended
        assert summary.stopped is Stopped.CANCELLED
        sent = simulator.received.total()
        assert summary.calls == sent < len(IDS)
        assert summary.outcomes[Outcome.COMPLETED] == sent
        assert Outcome.UNCERTAIN not in summary.outcomes


@pytest.mark.parametrize("obeys", [True, False])
def test_the_second_stage_ends_the_calls_of_all_processes(
    sqlite_world: World, until: Until, monkeypatch: pytest.MonkeyPatch, obeys: bool
) -> None:
    """A process that does not obey, here a stopped one, is killed."""
    monkeypatch.setattr("kyc_pipeline.verify.shards._OBEY_SECONDS", 600 if obeys else 0.2)
    world, stop = sqlite_world, StopFlag()
    faults = {key: [Hangs()] for key in IDS}
    with day_of(world, TWO | {"deepxl_timeout_seconds": 600}, faults=faults) as simulator:
        thread, ended = verify_in_thread(world, stop=stop)
        until(lambda: simulator.received.total() == 4)
        if not obeys:
            os.kill(shard_processes()[0], signal.SIGSTOP)
        stop.escalate()
        stop.escalate()
        thread.join()
        assert ended[0].stopped is Stopped.CANCELLED
        assert Counter(world.outcomes().values()) == {"uncertain": 4, "not_attempted": len(IDS) - 4}


def test_a_stop_before_the_processes_have_started(sqlite_world: World) -> None:
    world, stop = sqlite_world, StopFlag()
    with day_of(world, TWO) as simulator:
        stop.drain()
        assert world.verify(stop=stop).stopped is Stopped.CANCELLED
        assert not simulator.received


def test_a_denial_in_one_process_ends_all(sqlite_world: World, until: Until) -> None:
    """The credential expires in the middle of the day."""
    world = sqlite_world
    world.submit(*IDS)
    world.options = TWO | {"deepxl_max_concurrency": 2}
    denied = {key: [Responds(401)] for key in IDS if Shard(1, 2).has(key)}
    waits = WaitsForTest()
    faults = {key: [waits] for key in IDS} | denied
    with running_simulator(token=TOKEN, faults=faults) as simulator:
        world.server = simulator.url
        thread, ended = verify_in_thread(world)
        # The other process waits for its response, or has ended before its first call.
        until(lambda: sum(simulator.received[key] for key in denied) == 1 and len(shard_processes()) <= 1)
        waits.go.set()
        thread.join()
        (summary,) = ended
        assert isinstance(summary.error, AccessDenied)
        assert summary.stopped is Stopped.ACCESS_DENIED
        assert sum(simulator.received[key] for key in denied) == 1
        # The other process had one call in flight, or none; at most one more may have begun.
        assert simulator.received.total() <= 3


def test_a_lost_lease_ends_all_processes(sqlite_world: World, until: Until) -> None:
    world, waits = sqlite_world, WaitsForTest()
    with day_of(world, TWO, faults={key: [waits] for key in IDS}) as simulator:
        thread, ended = verify_in_thread(world)
        until(lambda: len(simulator.records) == 4)
        world_of_another = World(world.root, simulator.url, world.ledger_url)
        with world_of_another.ledger as ledger, ledger.write() as connection:
            connection.exec_driver_sql("UPDATE leases SET token = 'another', machine = 'x', expires_at = 0")
        waits.go.set()
        thread.join()
        (error,) = ended
        assert isinstance(error, LeaseLost)
        assert simulator.received.total() == 4
        with world_of_another.ledger as ledger:
            release_lease(ledger, acquire_lease(ledger, DATE, "another"))
        world.options = {}
        assert is_complete(world.verify(run_id="run-2"))
        assert dict(simulator.received) == dict.fromkeys(IDS, 1)


def test_a_process_whose_run_is_dead_sends_nothing(sqlite_world: World) -> None:
    ledger = sqlite_world.ledger
    lease = acquire_lease(ledger, DATE, "run-1")
    with share(ledger, lease, os.getppid()) as held:
        assert held.is_sure
        held.confirm()
        held.holder = 1 if os.getppid() != 1 else 2  # now another process is the parent
        assert not held.is_sure
        with pytest.raises(LeaseLost, match=f"the run that has partition {DATE} has ended"):
            held.confirm()
    with pytest.raises(LeaseLost), share(ledger, lease, os.getpid()):
        pass


def test_a_process_gets_the_same_stores(world: World) -> None:
    ledger = world.ledger
    release_lease(ledger, acquire_lease(ledger, DATE, "run-1"))
    ledger.generation = 7
    task: Any = pickle.loads(pickle.dumps((ledger, world.lake)))
    with task[0] as copy:
        assert repr(copy) == repr(ledger)
        assert (copy.generation, copy.clock) == (7, SYSTEM_CLOCK)
        assert copy.clock is SYSTEM_CLOCK  # on PostgreSQL, it is the server's
        assert copy.exists()
    assert task[1] == world.lake


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (AccessDenied("a line", http_status=401), "a line"),
        (ContractBroken("a line", text="a person's data"), "a line"),
        (ValueError("a person's data"), "unexpected ValueError"),
    ],
)
def test_errors_reach_the_run_without_data(error: Exception, line: str) -> None:
    portable = pickle.loads(pickle.dumps(shard_process._portable(error)))
    assert isinstance(portable, KycError)
    assert str(portable) == line
    assert type(portable) in (type(error), KycError)


def test_a_process_that_cannot_start_ends_the_others(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = sqlite_world
    world.submit(*IDS)
    world.options = TWO
    start = shards._start
    started: list[int] = []

    def fails_at_last(arguments: list[str], inherited: Sequence[int]) -> Any:
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        process = start(arguments, inherited)
        started.append(process.pid)
        return process

    monkeypatch.setattr(shards, "_start", fails_at_last)
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        with pytest.raises(BlockingIOError):
            world.verify()
        assert not any(Path(f"/proc/{pid}").exists() for pid in started)
        world.options = {}
        world.verify(run_id="run-2")
        assert_nothing_paid_twice_or_lost(world, simulator, IDS)
