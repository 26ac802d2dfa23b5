"""Collects the reasons to end a run; the workers check before each step."""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import Stopped


class RunControl:
    """The stop requests of one run. Create it in the run's event loop.

    The first reason counts. `on_immediate` abandons the calls in flight.
    """

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        self._halted = False
        self.reason = Stopped.NONE
        self.error: Exception | None = None
        self.on_immediate: Callable[[], None] = lambda: None

    def watching(self) -> AbstractContextManager[None]:
        """Obeys the stop flag, set by any thread, until the `with` block ends."""
        return self._stop.watched(lambda: self._loop.call_soon_threadsafe(self._stop_requested))

    @property
    def ending(self) -> bool:
        """Whether no new call may start."""
        return self._ending.is_set() or self._stop.draining

    @property
    def halted(self) -> bool:
        """Whether even a claimed call must not be sent. The end of a budget is no such reason."""
        return self._stop.draining or self._halted

    def end(self, reason: Stopped, error: Exception | None = None) -> None:
        """Ends the run once the calls in flight have finished. The engine raises `error` after writing."""
        self._halted |= reason not in (Stopped.BUDGET, Stopped.DAY_BUDGET)
        if not self._ending.is_set():
            self.reason = reason
            self.error = error
            self._ending.set()

    async def sleep(self, seconds: float) -> None:
        """Sleeps, but not beyond the run's end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)

    def _stop_requested(self) -> None:
        self.end(Stopped.CANCELLED)
        if self._stop.immediate:
            self.on_immediate()
