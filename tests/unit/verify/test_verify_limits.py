"""Rate, concurrency, pauses and the circuit breaker."""

import asyncio
import heapq
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import sqlalchemy as sa

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import Responds
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.rate_limits import list_rate_limits, reset_rate_limits
from kyc_pipeline.ledger.schema import attempts, rate_limits
from kyc_pipeline.ledger.times import Clock, now
from kyc_pipeline.verify import rate_limit
from kyc_pipeline.verify.gate import AdaptiveConcurrency, CircuitBreaker, Gate, Health, NoLimit
from kyc_pipeline.verify.rate_limit import SharedRateLimiter
from tests.unit.verify import children
from tests.unit.verify.world import DATE, TOKEN, World, is_complete

Until = Callable[[Callable[[], bool]], None]


class Simulated:
    """Simulated time for several hosts: it passes when all of them sleep."""

    def __init__(self, hosts: int) -> None:
        self._now = 1_700_000_000_000_000
        self._awake = hosts
        self._sleeping: list[tuple[int, int, asyncio.Event]] = []
        self.clock = Clock(lambda: self._now, lambda: self._now)

    @property
    def seconds(self) -> float:
        return self._now / 1_000_000

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        # Hosts wake one after another, the longest asleep first.
        entry = (self._now + round(seconds * 1_000_000), len(self._sleeping), woken)
        heapq.heappush(self._sleeping, entry)
        self._rest()
        await woken.wait()

    def leave(self) -> None:
        """A host has nothing more to do."""
        self._rest()

    def _rest(self) -> None:
        self._awake -= 1
        if not self._awake and self._sleeping:
            self._now, _, woken = heapq.heappop(self._sleeping)
            self._awake = 1
            woken.set()


def permits_of_two_hosts(url: str, *, per_second: float, calls: int) -> tuple[list[float], list[float]]:
    """When each of two hosts got its permits, in seconds. Each has many calls waiting at any time."""

    async def run() -> tuple[list[float], list[float]]:
        time = Simulated(hosts=2)
        granted: tuple[list[float], list[float]] = ([], [])

        async def host(ledger: Ledger, times: list[float]) -> None:
            limiter = SharedRateLimiter(ledger, "api", per_second)

            async def worker(share: int) -> None:
                for _ in range(share):
                    await limiter.acquire(time.sleep)
                    times.append(time.seconds)

            await asyncio.gather(*(worker(calls // 10) for _ in range(10)))
            time.leave()

        with Ledger(url, clock=time.clock) as first, Ledger(url, clock=time.clock) as second:
            await asyncio.gather(*map(host, (first, second), granted))
        return granted

    return asyncio.run(run())


@pytest.mark.parametrize("per_second", [5, 50, 200])
def test_two_hosts_share_a_rate_evenly(ledger_url: str, per_second: int) -> None:
    calls = max(150, 3 * per_second)
    times = permits_of_two_hosts(ledger_url, per_second=per_second, calls=calls)
    assert [len(each) for each in times] == [calls, calls]
    # They share the rate while both have work; the first permits may come in a burst.
    begin, end = max(each[10] for each in times), min(each[-1] for each in times)
    shared = [[moment for moment in each if begin <= moment <= end] for each in times]
    rate = (sum(map(len, shared)) - 1) / (end - begin)
    assert rate == pytest.approx(per_second, rel=0.05)
    # They take turns.
    assert abs(len(shared[0]) - len(shared[1])) <= 0.1 * len(shared[0])
    # No bursts: in no half second many more permits than its share.
    merged = sorted(times[0] + times[1])
    most = int(per_second * 0.5 + max(15, per_second * 0.2))
    assert all(merged[i + most] - merged[i] > 0.5 for i in range(len(merged) - most))


def test_processes_on_postgres_keep_the_rate_together(
    tmp_path: Path, postgres_url: str, processes: ForkServerContext
) -> None:
    dates = ("2024-09-01", "2024-09-02")
    world = World(tmp_path, ledger_url=postgres_url)
    for date in dates:
        world.submit(*(f"{date}-{number:03}" for number in range(40)), date=date)
    world.options = {"deepxl_requests_per_second": 50, "deepxl_max_concurrency": 32}
    with running_simulator(token=TOKEN) as simulator, world.ledger as ledger:
        runs = [
            processes.Process(
                target=children.verify,
                args=(str(tmp_path), simulator.url, postgres_url, world.options, date, f"run-{date}"),
            )
            for date in dates
        ]
        before = now()
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        assert [run.exitcode for run in runs] == [0, 0]
        assert simulator.received.total() == 80
        (limit,) = list_rate_limits(ledger).values()
    # However slow this machine is, they cannot have been faster: every permit moved the same arrival.
    assert limit.arrival - before >= 80 / 50 * 1_000_000


def waits_of(ledger: Ledger, *, calls: int = 1, per_second: float = 10) -> list[float]:
    """The waits of some calls, in seconds. No time passes."""

    async def run() -> list[float]:
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        for _ in range(calls):
            await SharedRateLimiter(ledger, "api", per_second).acquire(sleep)
        return waits

    return asyncio.run(run())


def set_limit(ledger: Ledger, **values: int) -> None:
    with ledger.write() as connection:
        connection.execute(sa.update(rate_limits).values(**values))


@pytest.mark.parametrize("hours", [0.5, 72])
def test_an_arrival_of_a_wrong_clock_delays_calls_only_for_seconds(ledger_url: str, hours: float) -> None:
    with Ledger(ledger_url) as ledger:
        waits_of(ledger)
        set_limit(ledger, arrival=now() + int(hours * 3_600_000_000))
        assert all(wait <= 10 for wait in waits_of(ledger, calls=3))


def test_a_pause_of_a_wrong_clock_lasts_at_most_an_hour_and_is_announced(
    ledger_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Ledger(ledger_url) as ledger:
        waits_of(ledger)
        set_limit(ledger, paused_until=now() + 72 * 3_600_000_000)
        (wait,) = waits_of(ledger)
    assert 3590 < wait <= 3601
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the next call waits {wait:.0f} s for the rate limit in the ledger (DeepXL asked for a pause); "
        "`kyc-pipeline limits reset` ends the wait"
    )


def test_a_run_that_waits_goes_on_when_the_limit_is_reset(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "_LONG_WAIT_SECONDS", 0.05)

    async def run() -> list[float]:
        waits: list[float] = []
        asleep = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            asleep.set()
            await asyncio.Event().wait()

        with Ledger(ledger_url) as ledger:
            limiter = SharedRateLimiter(ledger, "api", 10)
            await limiter.pause(3000)
            waiting = asyncio.create_task(limiter.acquire(sleep))
            await asleep.wait()
            assert await asyncio.to_thread(reset_rate_limits, ledger) == 1
            await asyncio.wait_for(waiting, 30)
        return waits

    (wait,) = asyncio.run(run())
    assert 2990 < wait <= 3000.2


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
    """One response asks for a pause; no worker sends its next call before the end of it."""
    world = sqlite_world
    ids = [f"s-{number:02}" for number in range(12)]
    world.submit(*ids)
    world.options = {"deepxl_max_concurrency": 2}
    date = int(time.time()) + 3
    value = "1" if form == "seconds" else time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(date))
    faults = {ids[0]: [Responds(429, {"Retry-After": value})]}
    with running_simulator(token=TOKEN, latency_ms=5, faults=faults) as simulator:
        world.server = simulator.url
        assert is_complete(world.verify())
    with world.ledger.read() as connection:
        asked = connection.execute(
            sa.select(attempts.c.ended_at).where(attempts.c.http_status == 429)
        ).scalar_one()
        end = asked + 1_000_000 if form == "seconds" else date * 1_000_000
        later = connection.execute(
            sa.select(sa.func.count()).where(
                attempts.c.started_at > asked, attempts.c.started_at < end - 500_000
            )
        ).scalar_one()
    # The other worker's call may have been on its way.
    assert later <= 1


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
    with running_simulator(token=TOKEN, faults={key: [Responds(429)] for key in ids[::3]}) as simulator:
        world.server = simulator.url
        summary = world.verify(date=DATE)
        assert len(simulator.records) == 60
    assert is_complete(summary)
    assert summary.retries == 20
