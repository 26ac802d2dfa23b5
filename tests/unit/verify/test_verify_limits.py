"""Rate, concurrency, pauses and the circuit breaker."""

import asyncio
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import sqlalchemy as sa

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import Answers
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.schema import attempts, submissions
from kyc_pipeline.verify.gate import AdaptiveConcurrency, CircuitBreaker, Gate, Health, NoLimit
from kyc_pipeline.verify.rate_limit import SharedRateLimiter
from tests.unit.verify import children
from tests.unit.verify.world import DATE, TOKEN, World

Until = Callable[[Callable[[], bool]], None]


def call_times(ledger: Ledger, date: str) -> list[float]:
    """When the partition's calls were started, in seconds since the epoch."""
    query = sa.select(submissions.c.requested_at).where(submissions.c.partition_date == date)
    with ledger.read() as connection:
        return sorted(moment / 1_000_000 for moment in connection.execute(query).scalars())


def test_two_hosts_share_a_rate_on_postgres_evenly(
    tmp_path: Path, postgres_url: str, processes: ForkServerContext
) -> None:
    dates = ("2024-09-01", "2024-09-02")
    world = World(tmp_path, ledger_url=postgres_url)
    for date in dates:
        world.submit(*(f"{date}-{number:03}" for number in range(150)), date=date)
    world.options = {"deepxl_requests_per_second": 50, "deepxl_max_concurrency": 32}
    with running_simulator(token=TOKEN) as simulator, world.ledger as ledger:
        runs = [
            processes.Process(
                target=children.verify,
                args=(str(tmp_path), simulator.url, postgres_url, world.options, date, f"run-{date}"),
            )
            for date in dates
        ]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        assert [run.exitcode for run in runs] == [0, 0]
        assert simulator.received.total() == 300
        times = [call_times(ledger, date) for date in dates]
    # They share the rate only while both run; the first calls may come in a burst.
    begin, end = max(both[10] for both in times), min(both[-1] for both in times)
    shared = [[moment for moment in both if begin <= moment <= end] for both in times]
    rate = sum(map(len, shared)) / (end - begin)
    assert 50 * 0.95 <= rate <= 50 * 1.05
    # They take turns.
    assert abs(len(shared[0]) - len(shared[1])) <= 0.1 * len(shared[0])
    # No bursts: never many more than 25 calls in half a second.
    merged = sorted(shared[0] + shared[1])
    assert all(merged[i + 40] - merged[i] > 0.5 for i in range(len(merged) - 40))


def test_a_pause_holds_back_everybody_who_shares_the_limit(ledger_url: str) -> None:
    async def run() -> list[float]:
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        with Ledger(ledger_url) as ledger:
            asking = SharedRateLimiter(ledger, "api", 10)
            other = SharedRateLimiter(ledger, "api", 10)
            stranger = SharedRateLimiter(ledger, "another api", 10)
            await asking.pause(30)
            await other.acquire(sleep)
            await stranger.acquire(sleep)
        return waits

    waits = asyncio.run(run())
    assert len(waits) == 1
    assert 25 < waits[0] <= 30.2


def test_a_slow_rate_is_kept_too(ledger_url: str) -> None:
    async def run() -> list[float]:
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        with Ledger(ledger_url) as ledger:
            for _ in range(3):
                await SharedRateLimiter(ledger, "api", 0.01).acquire(sleep)
        return waits

    first, second = asyncio.run(run())
    assert 90 < first <= 100
    assert 190 < second <= 200


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_slows_every_worker(sqlite_world: World, form: str) -> None:
    """One answer asks for a pause; no worker sends its next call before the end of it."""
    world = sqlite_world
    ids = [f"s-{number:02}" for number in range(12)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 2}
    seconds = 1 if form == "seconds" else 2  # a date is in whole seconds
    value = (
        "1" if form == "seconds" else time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3))
    )
    faults = {ids[0]: [Answers(429, {"Retry-After": value})]}
    with running_simulator(token=TOKEN, latency_ms=5, faults=faults) as simulator:
        world.server = simulator.url
        assert world.verify().is_complete
    with world.ledger.read() as connection:
        asked = connection.execute(
            sa.select(attempts.c.ended_at).where(attempts.c.http_status == 429)
        ).scalar_one()
        later = connection.execute(
            sa.select(sa.func.count()).where(
                attempts.c.started_at > asked + 100_000,
                attempts.c.started_at < asked + (seconds - 0.5) * 1_000_000,
            )
        ).scalar_one()
    assert later == 0


def test_concurrency_halves_once_for_a_round_and_comes_back() -> None:
    async def run() -> None:
        slots = AdaptiveConcurrency(16)
        started = time.monotonic()
        for _ in range(16):
            await slots.acquire()
        for _ in range(16):
            slots.release(started, Health.THROTTLED)
        assert slots.limit == 8
        for _ in range(200):
            await slots.acquire()
            slots.release(time.monotonic(), Health.WELL)
        assert slots.limit == 16
        for _ in range(10):
            await slots.acquire()
            slots.release(time.monotonic() + 60, Health.THROTTLED)
        assert slots.limit == 1

    asyncio.run(run())


def test_concurrency_is_never_exceeded_and_nobody_is_forgotten() -> None:
    async def run() -> int:
        slots = AdaptiveConcurrency(3)
        inside = most = 0

        async def call(number: int) -> None:
            nonlocal inside, most
            await slots.acquire()
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            slots.release(time.monotonic(), Health.THROTTLED if number == 20 else Health.WELL)

        calls = [asyncio.create_task(call(number)) for number in range(60)]
        await asyncio.sleep(0)
        calls[30].cancel()  # it waits
        await asyncio.gather(*calls, return_exceptions=True)
        assert inside == 0
        return most

    assert asyncio.run(run()) == 3


def test_the_breaker_lets_one_probe_through_and_gives_up_in_the_end() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def run() -> CircuitBreaker:
        breaker = CircuitBreaker(3, (1.0, 2.0), sleep)
        for health in (Health.ILL, Health.ILL, Health.WELL, Health.ILL, Health.ILL, Health.ILL):
            assert not await breaker.admit()
            breaker.report(health, probe=False)
        assert await breaker.admit()
        second = asyncio.create_task(breaker.admit())
        await asyncio.sleep(0)
        assert not second.done()
        breaker.report(Health.ILL, probe=True)
        assert await second
        breaker.report(Health.WELL, probe=True)
        assert not await breaker.admit()
        for _ in range(3):
            breaker.report(Health.ILL, probe=False)
        for _ in range(2):
            assert await breaker.admit()
            breaker.report(Health.ILL, probe=True)
        assert not await breaker.admit()
        return breaker

    assert asyncio.run(run()).given_up
    assert waits == [1.0, 2.0, 1.0, 2.0]


def test_a_gate_gives_its_slot_back_whatever_happens() -> None:
    async def sleep(_seconds: float) -> None:
        return

    async def run() -> None:
        gate = Gate(max_concurrency=1, limiter=NoLimit(), sleep=sleep, breaker_waits=(1.0,))
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with gate.passage():
                    raise ZeroDivisionError
        async with asyncio.timeout(5), gate.passage():
            pass

    asyncio.run(run())


def test_adaptive_concurrency_lets_a_throttling_server_finish(world: World) -> None:
    ids = [f"s-{number:03}" for number in range(60)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 16}
    with running_simulator(token=TOKEN, faults={key: [Answers(429)] for key in ids[::3]}) as simulator:
        world.server = simulator.url
        summary = world.verify(date=DATE)
        assert len(simulator.records) == 60
    assert summary.is_complete
    assert summary.retries == 20
