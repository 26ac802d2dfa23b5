"""Stopping a run: calls in flight finish and are recorded, and no new call starts."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkServerContext

import pytest

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import Fault, Hangs
from kyc_pipeline.ledger.models import Claim
from kyc_pipeline.ledger.writer import GroupWriter
from kyc_pipeline.verify.signals import StopFlag, stop_on_signals
from kyc_pipeline.verify.summary import Progress, Stopped
from tests.faults import WaitsForTest
from tests.unit.verify import children
from tests.unit.verify.world import TOKEN, World, is_complete

Until = Callable[[Callable[[], bool]], None]
IDS = [f"s-{number:02}" for number in range(40)]
FOUR = {"deepxl_max_concurrency": 4}


def all_meet(fault: Fault) -> dict[str, list[Fault]]:
    """Every submission meets it at its first call: the engine chooses which go first."""
    return {key: [fault] for key in IDS}


def sent_or_not(world: World) -> Counter[str]:
    """Submissions by outcome; `failed` and `not_attempted` both count as not sent."""
    unsent = {"failed": "not sent", "not_attempted": "not sent"}
    return Counter(unsent.get(outcome, outcome) for outcome in world.outcomes().values())


def test_drain_finishes_what_is_in_flight(world: World, until: Until) -> None:
    world.submit(*IDS)
    world.options = FOUR
    stop, waits = StopFlag(), WaitsForTest()
    with running_simulator(token=TOKEN, faults=all_meet(waits)) as simulator:
        world.server = simulator.url

        def cancel() -> None:
            until(lambda: len(simulator.records) == 4)
            stop.drain()
            waits.go.set()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        summary = world.verify(stop=stop)
        canceller.join()
        assert summary.stopped is Stopped.CANCELLED
        assert sent_or_not(world) == {"completed": 4, "not sent": 36}
        assert is_complete(world.verify(run_id="run-2"))
        assert dict(simulator.received) == dict.fromkeys(IDS, 1)


def test_a_call_that_was_claimed_is_not_sent_after_a_stop(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = sqlite_world
    world.submit(*IDS)
    world.options = {"deepxl_max_concurrency": 1}
    stop = StopFlag()
    claim = GroupWriter.claim

    async def claim_then_stop(writer: GroupWriter, intent: Claim) -> bool:
        won = await claim(writer, intent)
        stop.drain()
        return won

    monkeypatch.setattr(GroupWriter, "claim", claim_then_stop)
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        summary = world.verify(stop=stop)
        assert simulator.received.total() == 0
    assert summary.calls == 0
    assert Counter(world.outcomes().values()) == {"failed": 1, "not_attempted": 39}


def test_now_gives_up_what_is_in_flight_as_uncertain(world: World, until: Until) -> None:
    world.submit(*IDS)
    world.options = FOUR
    stop = StopFlag()
    with running_simulator(token=TOKEN, faults=all_meet(Hangs())) as simulator:
        world.server = simulator.url

        def cancel() -> None:
            until(lambda: simulator.received.total() == 4)
            stop.escalate()
            stop.escalate()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        summary = world.verify(stop=stop)
        canceller.join()
        assert summary.stopped is Stopped.CANCELLED
        assert Counter(world.outcomes().values()) == {"uncertain": 4, "not_attempted": 36}
        assert summary.held == 4


def test_a_run_that_is_stopped_before_it_begins_makes_no_call(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit("a")
    stop = StopFlag()
    stop.drain()
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        assert world.verify(stop=stop).stopped is Stopped.CANCELLED
        assert not simulator.received
    assert world.outcomes() == {"a": "not_attempted"}


def test_ctrl_c_in_the_calling_thread_drains_and_is_raised_again(
    sqlite_world: World, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = sqlite_world
    world.submit(*IDS)
    world.options = FOUR
    stop, waits = StopFlag(), WaitsForTest()
    escalate = StopFlag.escalate

    def escalate_then_respond(flag: StopFlag) -> None:
        escalate(flag)
        waits.go.set()

    monkeypatch.setattr(StopFlag, "escalate", escalate_then_respond)
    with running_simulator(token=TOKEN, faults=all_meet(waits)) as simulator:
        world.server = simulator.url

        def interrupt() -> None:
            until(lambda: len(simulator.records) == 4)
            os.kill(os.getpid(), signal.SIGINT)

        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            world.verify(stop=stop)
        interrupter.join()
        assert simulator.received.total() == 4
        assert sent_or_not(world) == {"completed": 4, "not sent": 36}
        # The flag belongs to the caller, who may go on to another partition.
        assert not stop.draining


def test_an_error_while_progress_is_reported_drains_too(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit(*IDS)
    world.options = {"deepxl_max_concurrency": 1}

    def sender(progress: Progress) -> None:
        assert progress.total == 40
        raise ZeroDivisionError

    with running_simulator(token=TOKEN, latency_ms=40) as simulator:
        world.server = simulator.url
        with pytest.raises(ZeroDivisionError):
            world.verify(progress=sender)
        assert Counter(world.outcomes().values())["completed"] == simulator.received.total()


def test_signals_stop_in_two_stages_and_the_handlers_come_back() -> None:
    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    for number in (signal.SIGINT, signal.SIGTERM):
        stop = StopFlag()
        with stop_on_signals(stop):
            assert not stop.draining
            signal.raise_signal(number)
            assert (stop.draining, stop.immediate) == (True, False)
            signal.raise_signal(number)
            assert (stop.draining, stop.immediate) == (True, True)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_process_that_is_signalled_with_calls_in_flight(
    sqlite_world: World, processes: ForkServerContext, until: Until, number: signal.Signals, times: int
) -> None:
    world = sqlite_world
    world.submit(*IDS)
    world.options = FOUR | {"deepxl_timeout_seconds": 600}
    waits = WaitsForTest()
    with running_simulator(token=TOKEN, faults=all_meet(waits)) as simulator:
        world.server = simulator.url
        receiver, sender = processes.Pipe(duplex=False)
        child = processes.Process(
            target=children.verify_until_signalled,
            args=(str(world.root), simulator.url, world.options, sender),
        )
        child.start()
        until(lambda: len(simulator.records) == 4)
        for stage in ["drain", "now"][:times]:
            os.kill(child.pid or 0, number)
            assert receiver.recv() == stage
        if times == 1:
            waits.go.set()
        assert receiver.recv() == "cancelled"
        waits.go.set()
        child.join()
        assert child.exitcode == 0
        ended = "completed" if times == 1 else "uncertain"
        assert sent_or_not(world) == {ended: 4, "not sent": 36}
        assert len(simulator.records) == simulator.received.total() == 4
        # The server has processed the abandoned calls: the next run finds them and sends nothing twice.
        assert is_complete(world.verify(run_id="run-2"))
        assert dict(simulator.received) == dict.fromkeys(IDS, 1)
        assert len(simulator.records) == 40


def test_progress_is_reported_at_the_end(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit("a", "b")
    world.options = {"deepxl_price_per_call": "0.25"}
    seen: list[Progress] = []
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        summary = world.verify(progress=seen.append)
    assert (seen[-1].done, seen[-1].total, seen[-1].calls) == (2, 2, 2)
    assert str(seen[-1].estimated_cost) == str(summary.estimated_cost) == "0.50 EUR"
    assert seen[-1].seconds_left == 0
    assert "2 of 2 settled" in str(seen[-1])
    assert "2 completed" in str(summary)
