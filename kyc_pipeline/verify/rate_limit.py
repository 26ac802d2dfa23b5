"""The rate limit that all runs share: pyrate-limiter's GCRA, with its state in the ledger.

pyrate-limiter's own SQL buckets use a sliding window. In a measurement it was exact but bursty (a second's
permits all within the first 100 ms) and unfair (24 permits for one process, 847 for another). GCRA spaces
permits evenly, and its state is one number, which the ledger shares between processes. Booking makes it
fair: a run without a permit books the next free one and sleeps until then. A run has one booking at a time,
so busy runs take turns.
"""

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Final

from pyrate_limiter import Rate
from pyrate_limiter.abstracts import GCRA

from kyc_pipeline.deepxl.call_errors import RETRY_AFTER_CAP_SECONDS
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.rate_limits import locked_rate_limit, read_arrival
from kyc_pipeline.ledger.times import SECOND
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.gate import NoLimit, RateLimiter, Sleep

_WINDOW_SECONDS: Final = 1000
"""Long enough to make a rate such as 0.5 per second a whole number of permits."""
_BURST_SECONDS: Final = 0.15
"""How much a late wake-up may catch up at once. Less would lose pace on a busy machine."""
_BOOKING_SECONDS: Final = 0.05
"""At high rates, one transaction books the permits of this many seconds."""
_MAX_AHEAD_SECONDS: Final = 10.0
_MAX_AHEAD_PERMITS: Final = 20
"""No permit is booked further ahead than the longer of both: each run books one at a time."""
_LONG_WAIT_SECONDS: Final = 5.0
"""A longer wait is logged, and at this interval the run checks whether an operator has ended it."""
_logger = logging.getLogger(__name__)


def shared_limiter(settings: Settings, ledger: Ledger) -> RateLimiter:
    """The limiter of `DEEPXL_REQUESTS_PER_SECOND`, shared by all runs that use this ledger and API."""
    if settings.deepxl_requests_per_second == 0:
        return NoLimit()
    return SharedRateLimiter(ledger, settings.deepxl_base_url, settings.deepxl_requests_per_second)


@dataclass(frozen=True, slots=True)
class _Booking:
    """Permits that begin in `wait` seconds. `arrival` is what the ledger stored for them."""

    permits: int
    wait: float
    arrival: int
    is_paused: bool

    @property
    def reason(self) -> str:
        return "DeepXL asked for a pause" if self.is_paused else "all earlier permits are taken"


class SharedRateLimiter:
    """Limits all limiters of this name on this ledger to `per_second` requests per second together."""

    def __init__(self, ledger: Ledger, name: str, per_second: float) -> None:
        self._ledger = ledger
        self._name = name[:255]
        permits = max(1, round(per_second * _WINDOW_SECONDS))
        burst = max(1, round(per_second * _BURST_SECONDS))
        self._rates = [Rate(permits, _WINDOW_SECONDS * 1000, burst=burst)]
        self._max_permits = min(burst, max(1, math.floor(per_second * _BOOKING_SECONDS)))
        self._horizons = {
            "arrival_ahead": int(max(_MAX_AHEAD_SECONDS, _MAX_AHEAD_PERMITS / per_second) * SECOND),
            "pause_ahead": int(RETRY_AFTER_CAP_SECONDS * SECOND),
        }
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._granted = 0

    async def acquire(self, sleep: Sleep) -> None:
        """Waits until one request may be sent. Raises :class:`LedgerError`."""
        self._waiting += 1
        try:
            async with self._turn:
                while not self._granted:
                    booking = await asyncio.to_thread(self._book, min(self._waiting, self._max_permits))
                    if await self._wait(booking, sleep):
                        self._granted = booking.permits
                self._granted -= 1
        finally:
            self._waiting -= 1

    async def pause(self, seconds: float) -> None:
        """Grants no run a permit for `seconds`. Raises :class:`LedgerError`."""
        await asyncio.to_thread(self._pause, seconds)

    async def _wait(self, booking: _Booking, sleep: Sleep) -> bool:
        """Waits until the booked permits begin; False if somebody reset the limit meanwhile."""
        if booking.wait <= _LONG_WAIT_SECONDS:
            if booking.wait:
                await sleep(booking.wait)
            return True
        _logger.warning(
            "the next call waits %.0f s for the rate limit in the ledger (%s); "
            "`kyc-pipeline limits reset` ends the wait",
            booking.wait,
            booking.reason,
        )
        waiting = asyncio.ensure_future(sleep(booking.wait))
        try:
            while not (await asyncio.wait({waiting}, timeout=_LONG_WAIT_SECONDS))[0]:
                if await asyncio.to_thread(read_arrival, self._ledger, self._name) < booking.arrival:
                    return False
        finally:
            waiting.cancel()
        return True

    def _book(self, permits: int) -> _Booking:
        """Books the next free permits."""
        algorithm = GCRA()
        with locked_rate_limit(self._ledger, self._name, **self._horizons) as limit:
            now = limit.now // 1000
            start = max(now, math.ceil(limit.paused_until / 1000))
            state, decision = algorithm.step(self._rates, (limit.arrival,), start, permits)
            if not decision.allowed:
                start += decision.retry_after_ms or 0
                state, decision = algorithm.step(self._rates, (limit.arrival,), start, permits)
            limit.arrival = int(state[0])
            is_paused = limit.paused_until > limit.now
        return _Booking(permits, (start - now) / 1000, limit.arrival, is_paused)

    def _pause(self, seconds: float) -> None:
        with locked_rate_limit(self._ledger, self._name, **self._horizons) as limit:
            limit.paused_until = max(limit.paused_until, limit.now + int(seconds * SECOND))
