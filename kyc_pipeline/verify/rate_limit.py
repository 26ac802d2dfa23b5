"""The rate limit that all runs share: pyrate-limiter's GCRA, with its state in the ledger.

pyrate-limiter's own SQL buckets use a sliding window. In a measurement it was exact but bursty (a second's
permits all within the first 100 ms) and unfair (24 permits for one process, 847 for another). GCRA spaces
permits evenly, and its state is one number, which the ledger shares between processes. Booking makes it
fair: a run without a permit books the next free one and sleeps until then. A run has one booking at a time,
so busy runs take turns.
"""

import asyncio
import math
from typing import Final

from pyrate_limiter import Rate
from pyrate_limiter.abstracts import GCRA

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.rate_limits import locked_rate_limit
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.gate import NoLimit, RateLimiter, Sleep

_WINDOW_SECONDS: Final = 1000
"""Long enough to make a rate such as 0.5 per second a whole number of permits."""
_BURST_SECONDS: Final = 0.15
"""How much a late wake-up may catch up at once. Less would lose pace on a busy machine."""
_BOOKING_SECONDS: Final = 0.05
"""At high rates, one transaction books the permits of this long."""


def shared_limiter(settings: Settings, ledger: Ledger) -> RateLimiter:
    """The limiter of `DEEPXL_REQUESTS_PER_SECOND`, shared by all runs that use this ledger and API."""
    if settings.deepxl_requests_per_second == 0:
        return NoLimit()
    return SharedRateLimiter(ledger, settings.deepxl_base_url, settings.deepxl_requests_per_second)


class SharedRateLimiter:
    """Limits all limiters of this name on this ledger to `per_second` requests per second together."""

    def __init__(self, ledger: Ledger, name: str, per_second: float) -> None:
        self._ledger = ledger
        self._name = name[:255]
        permits = max(1, round(per_second * _WINDOW_SECONDS))
        burst = max(1, round(per_second * _BURST_SECONDS))
        self._rates = [Rate(permits, _WINDOW_SECONDS * 1000, burst=burst)]
        self._max_permits = min(burst, max(1, math.floor(per_second * _BOOKING_SECONDS)))
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._granted = 0

    async def acquire(self, sleep: Sleep) -> None:
        """Waits until one request may be sent. Raises :class:`LedgerError`."""
        self._waiting += 1
        try:
            async with self._turn:
                if not self._granted:
                    permits = min(self._waiting, self._max_permits)
                    wait = await asyncio.to_thread(self._book, permits)
                    if wait:
                        await sleep(wait)
                    self._granted = permits
                self._granted -= 1
        finally:
            self._waiting -= 1

    async def pause(self, seconds: float) -> None:
        """Grants nobody a permit for `seconds`. Raises :class:`LedgerError`."""
        await asyncio.to_thread(self._push_back, seconds)

    def _book(self, permits: int) -> float:
        """Books the next free permits; returns the seconds until they begin."""
        algorithm = GCRA()
        with locked_rate_limit(self._ledger, self._name) as limit:
            now = limit.now // 1000
            state, decision = algorithm.step(self._rates, (limit.arrival,), now, permits)
            wait = decision.retry_after_ms or 0
            if not decision.allowed:
                state, decision = algorithm.step(self._rates, (limit.arrival,), now + wait, permits)
            limit.arrival = int(state[0])
        return wait / 1000

    def _push_back(self, seconds: float) -> None:
        with locked_rate_limit(self._ledger, self._name) as limit:
            # Add the burst: permits that catch up would come too early.
            until = limit.now + int((seconds + _BURST_SECONDS) * 1_000_000)
            limit.arrival = max(limit.arrival, until)
