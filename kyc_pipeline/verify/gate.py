"""When a call may start: concurrency that finds the server's pace, pauses, and a circuit breaker.

Each run has a gate of its own. Behind it is the rate limit that all runs share (`rate_limit.py`).
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

Sleep = Callable[[float], Awaitable[None]]
"""Sleeps for some seconds, or until the run is to stop."""


class Health(Enum):
    """What the end of a call says about the server."""

    WELL = "well"
    THROTTLED = "throttled"
    """It asked for a slower pace (429)."""
    ILL = "ill"
    """No answer, or 5xx."""


class RateLimiter(Protocol):
    """A rate limit that is shared with other runs."""

    async def acquire(self, sleep: Sleep) -> None:
        """Waits, by `sleep`, until one request may be sent."""

    async def pause(self, seconds: float) -> None:
        """Holds everybody who shares the limit back for some seconds."""


class NoLimit:
    """No rate limit (`DEEPXL_REQUESTS_PER_SECOND=0`)."""

    async def acquire(self, sleep: Sleep) -> None:
        """Returns at once."""

    async def pause(self, seconds: float) -> None:
        """Nobody else shares it."""


class AdaptiveConcurrency:
    """Slots of calls in flight: halved when the server throttles, one more after each full round of calls.

    Calls that were already under way when the limit was halved do not halve it again: all report the same.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.limit = float(maximum)
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._halved_at = float("-inf")

    async def acquire(self) -> None:
        """Waits for a slot, first come, first served."""
        if self._taken < int(self.limit) and not self._waiting:
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free_slot()
            raise

    def release(self, started: float, health: Health | None) -> None:
        """Gives a slot back; `started` is when its call began (monotonic clock)."""
        if health is Health.THROTTLED:
            if started > self._halved_at:
                self._halved_at = time.monotonic()
                self.limit = max(1.0, self.limit / 2)
        elif health is Health.WELL:
            self.limit = min(float(self._maximum), self.limit + 1 / self.limit)
        self._free_slot()

    def _free_slot(self) -> None:
        self._taken -= 1
        while self._waiting and self._taken < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)


class CircuitBreaker:
    """Opens after a run of failures; then one call at a time probes, each after a longer wait.

    `given_up` once the probe after the last wait has failed: leave the rest to a later run.
    """

    def __init__(self, threshold: int, waits: Sequence[float], sleep: Sleep) -> None:
        self._threshold = threshold
        self._waits = waits
        self._sleep = sleep
        self._failures = 0
        self._failed_probes = 0
        self._is_open = False
        self._probe = asyncio.Lock()
        self.given_up = False

    async def admit(self) -> bool:
        """Waits until a call may start; True if it is a probe, whose end `report` must be told."""
        if not self._is_open:
            return False
        await self._probe.acquire()
        if not self._is_open or self.given_up:
            self._probe.release()
            return False
        try:
            await self._sleep(self._waits[self._failed_probes])
        except asyncio.CancelledError:
            self._probe.release()
            raise
        return True

    def report(self, health: Health | None, *, probe: bool) -> None:
        """Tells how a call ended; None if it was not made after all."""
        if health is Health.ILL:
            self._failures += 1
            self._failed_probes += probe
            self._is_open = self._failures >= self._threshold
            self.given_up = self._failed_probes >= len(self._waits)
        elif health is not None:
            self._failures = self._failed_probes = 0
            self._is_open = False
        if probe:
            self._probe.release()


BREAKER_THRESHOLD: Final = 10
BREAKER_WAITS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(slots=True)
class Passage:
    """One call on its way through the gate; the caller sets `health` when the call has ended."""

    started: float = float("-inf")
    health: Health | None = None


class Gate:
    """All that a call waits for before it starts."""

    def __init__(
        self, *, max_concurrency: int, limiter: RateLimiter, sleep: Sleep, breaker_waits: Sequence[float]
    ) -> None:
        self.concurrency = AdaptiveConcurrency(max_concurrency)
        self.breaker = CircuitBreaker(BREAKER_THRESHOLD, breaker_waits, sleep)
        self._limiter = limiter
        self._sleep = sleep
        self._paused_until = float("-inf")

    @contextlib.asynccontextmanager
    async def passage(self) -> AsyncIterator[Passage]:
        """Waits for a slot, the breaker and a permit; the call has its slot until the block ends."""
        passage = Passage()
        probe = False
        await self.concurrency.acquire()
        try:
            probe = await self.breaker.admit()
            await self.permit()
            passage.started = time.monotonic()
            yield passage
        finally:
            self.breaker.report(passage.health, probe=probe)
            self.concurrency.release(passage.started, passage.health)

    async def permit(self) -> None:
        """Waits for the end of a pause and for one request of the rate limit."""
        while True:
            await self._limiter.acquire(self._sleep)
            wait = self._paused_until - time.monotonic()
            if wait <= 0:
                return
            await self._sleep(wait)
            if self._paused_until > time.monotonic():  # woken early: the run is to stop
                return

    async def pause(self, seconds: float) -> None:
        """Holds back every call of this run, and of all runs that share the rate limit."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        await self._limiter.pause(seconds)
