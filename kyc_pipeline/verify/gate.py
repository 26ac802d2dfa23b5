"""When a call may start: adaptive concurrency, pauses and a circuit breaker.

Each run has its own gate. Behind it is the rate limit that all runs share (`rate_limit.py`).
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
"""Sleeps for some seconds, or until the run must stop."""


class Health(Enum):
    """What a call's result says about the server."""

    WELL = "well"
    THROTTLED = "throttled"
    """It asked for fewer requests (429)."""
    ILL = "ill"
    """Any other failure: no response, 5xx and the like."""


class RateLimiter(Protocol):
    """A rate limit shared with other runs."""

    async def acquire(self, sleep: Sleep) -> None:
        """Waits, using `sleep`, until one request may be sent."""

    async def pause(self, seconds: float) -> None:
        """Stops requests under the shared limit for some seconds."""


class NoLimit:
    """No rate limit (`DEEPXL_REQUESTS_PER_SECOND=0`)."""

    async def acquire(self, sleep: Sleep) -> None:
        """Returns at once."""

    async def pause(self, seconds: float) -> None:
        """Does nothing: no other run shares it."""


class AdaptiveConcurrency:
    """Limits the calls in flight: half as many when the server throttles, one more per full round of calls.

    Calls already in flight when the limit was halved do not halve it again: they report the same overload.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.limit = float(maximum)
        self._before: float | None = None
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
        """Returns a slot; `started` is when its call began (monotonic clock)."""
        if health is Health.THROTTLED:
            if started > self._halved_at:
                self._halved_at = time.monotonic()
                self.limit = max(1.0, self.limit / 2)
        elif health is Health.WELL and self._before is None:
            self.limit = min(float(self._maximum), self.limit + 1 / self.limit)
        self._free_slot()

    def narrow(self) -> None:
        """Allows one call at a time until :meth:`widen`."""
        if self._before is None:
            self._before, self.limit = self.limit, 1.0

    def widen(self) -> None:
        """Restores the limit of before :meth:`narrow`."""
        if self._before is not None:
            self.limit, self._before = self._before, None

    def _free_slot(self) -> None:
        self._taken -= 1
        while self._waiting and self._taken < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)


class CircuitBreaker:
    """Opens after consecutive failures; then one call at a time probes, each after a longer wait.

    If the probe after the last wait fails too, it is `given_up`: a later run does the rest.
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
        """Waits until a call may start; True if the call is a probe."""
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
        """Records a call's result; None if the call was not made. Must follow every probe."""
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
    """One call's way through the gate; the caller sets `health` when the call has ended."""

    started: float = float("-inf")
    health: Health | None = None


class Gate:
    """Everything that a call waits for before it starts."""

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
        """Waits for a slot, the breaker and a permit; holds the slot until the block ends."""
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
        """Waits for the end of a pause and for a permit of the rate limit."""
        while True:
            await self._limiter.acquire(self._sleep)
            wait = self._paused_until - time.monotonic()
            if wait <= 0:
                return
            await self._sleep(wait)
            if self._paused_until > time.monotonic():  # woken early: the run must stop
                return

    async def pause(self, seconds: float) -> None:
        """Delays the calls of this run and of all runs that share the rate limit."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        await self._limiter.pause(seconds)
