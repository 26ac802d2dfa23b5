"""Whether a run goes on: one place for every reason to end it, which its workers ask before each step."""

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Self

from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import Stopped


class RunControl:
    """The stop requests of one run, in its event loop; use it with `with` inside that loop.

    The first reason counts. `on_immediate` is called when the calls in flight are to be given up.
    """

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop
        self._ending = asyncio.Event()
        self._watch = contextlib.ExitStack()
        self._halted = False
        self.reason = Stopped.NONE
        self.error: Exception | None = None
        self.on_immediate: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def ask() -> None:
            loop.call_soon_threadsafe(self._asked)

        self._watch.enter_context(self._stop.watched(ask))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watch.close()

    @property
    def ending(self) -> bool:
        """Whether no new call may be made."""
        return self._ending.is_set() or self._stop.draining

    @property
    def halted(self) -> bool:
        """Whether a call that is ready may not be made either; one that has its share of the budget may."""
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

    def _asked(self) -> None:
        self.end(Stopped.CANCELLED)
        if self._stop.immediate:
            self.on_immediate()
