"""When a call may start: concurrency that finds the server's pace, pauses, and a circuit breaker.

The gate belongs to one run. What all runs share is the rate limit behind it (`rate_limit.py`).
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Final, Protocol, Self

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


class _Slots:
    """At most `capacity()` holders at once; first come, first served."""

    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        if self._taken < self._capacity() and not self._waiting:
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        self._taken -= 1
        while self._waiting and self._taken < self._capacity():
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)


class AdaptiveConcurrency:
    """Calls in flight: halved when the server throttles, and back up by one for each full round of calls.

    Calls that were under way when the limit was halved do not halve it again: they all tell the same.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.limit = float(maximum)
        self._slots = _Slots(lambda: int(self.limit))
        self._halved_at = float("-inf")

    async def acquire(self) -> None:
        """Waits for a slot, first come, first served."""
        await self._slots.acquire()

    def release(self, started: float, health: Health | None) -> None:
        """Gives a slot back; `started` is when its call began (monotonic clock)."""
        if health is Health.THROTTLED:
            if started > self._halved_at:
                self._halved_at = time.monotonic()
                self.limit = max(1.0, self.limit / 2)
        elif health is Health.WELL:
            self.limit = min(float(self._maximum), self.limit + 1 / self.limit)
        self._slots.release()


class CircuitBreaker:
    """Opens after a run of failures; then one call at a time probes, each after a longer wait.

    `given_up` once the last wait's probe has failed: a server that ill is for a later run.
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


_AHEAD: Final = 16
"""One in so many calls may be prepared while all slots are taken."""


class Passage:
    """One call's way through the gate, as a context manager; the caller says how the call ended.

    Entering waits for the breaker and a permit. What the call still needs then, such as its claim on disk,
    is made ready, and `depart` waits for its slot. So a slot that becomes free is used at once. Few calls
    are prepared without a slot, since after a crash each of them counts as perhaps sent.
    """

    __slots__ = ("_departed", "_gate", "_probe", "health")

    def __init__(self, gate: "Gate") -> None:
        self._gate = gate
        self._probe = False
        self._departed: float | None = None
        self.health: Health | None = None

    async def __aenter__(self) -> Self:
        gate = self._gate
        await gate.prepared.acquire()
        try:
            self._probe = await gate.breaker.admit()
            await gate.permit()
        except BaseException:
            self._leave()
            raise
        return self

    async def depart(self) -> None:
        """Waits for the call's slot, which it has until the block ends."""
        await self._gate.concurrency.acquire()
        self._departed = time.monotonic()

    async def __aexit__(self, *_: object) -> None:
        if self._departed is not None:
            self._gate.concurrency.release(self._departed, self.health)
        self._leave()

    def _leave(self) -> None:
        self._gate.breaker.report(self.health, probe=self._probe)
        self._gate.prepared.release()


class Gate:
    """All that a call waits for before it starts."""

    def __init__(
        self, *, max_concurrency: int, limiter: RateLimiter, sleep: Sleep, breaker_waits: Sequence[float]
    ) -> None:
        self.concurrency = concurrency = AdaptiveConcurrency(max_concurrency)
        self.prepared = _Slots(lambda: int(concurrency.limit) + int(concurrency.limit) // _AHEAD)
        self.breaker = CircuitBreaker(BREAKER_THRESHOLD, breaker_waits, sleep)
        self._limiter = limiter
        self._sleep = sleep
        self._paused_until = float("-inf")

    def passage(self) -> Passage:
        """A call's way through, to be used with `async with`."""
        return Passage(self)

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
