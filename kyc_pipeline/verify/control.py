"""Whether a run goes on: collects every reason to end it; its workers ask before each step."""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import Stopped


class RunControl:
    """The stop requests of one run; made in its event loop.

    The first reason counts. `on_immediate` is called when the calls in flight are to be given up.
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
        """Obeys the stop flag, whichever thread sets it, while the `with` block runs."""
        return self._stop.watched(lambda: self._loop.call_soon_threadsafe(self._stop_requested))

    @property
    def ending(self) -> bool:
        """Whether no new call may be made."""
        return self._ending.is_set() or self._stop.draining

    @property
    def halted(self) -> bool:
        """Whether not even a claimed call may be sent. At the end of the budget it may: it has its share."""
        return self._stop.draining or self._halted

    def end(self, reason: Stopped, error: Exception | None = None) -> None:
        """Ends the run: calls in flight are still finished. `error` is raised when all is written."""
        self._halted |= reason is not Stopped.BUDGET
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
