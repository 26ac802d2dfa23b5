"""A time limit that counts only the time in which this process ran.

A suspended process (SIGSTOP, a paused container) finds all its time limits exceeded when it continues, though
the responses may have arrived long ago: they are paid for, and wait in the socket.
"""

import asyncio
from types import TracebackType
from typing import Final, Self

_STEP: Final = 1.0
"""Seconds between two looks at the clock, and the least time left after a standstill."""
_STANDSTILL: Final = 0.25
"""If a look at the clock is later than this (in seconds), the process was suspended."""


class Patience:
    """Raises TimeoutError in an `async with` block that runs longer than `seconds`, suspensions excluded."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._left = self._seconds
        self._wait()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def restart(self) -> None:
        """Starts again with the full time."""
        self._timer.cancel()
        self._left = self._seconds
        self._wait()

    def _wait(self) -> None:
        step = min(self._left, _STEP)
        self._left -= step
        due = self._loop.time() + step
        self._timer = self._loop.call_at(due, self._look, due)

    def _look(self, due: float) -> None:
        if self._loop.time() - due > _STANDSTILL:
            self._left = max(self._left, _STEP)
        if self._left > 0:
            self._wait()
        else:
            self._timeout.reschedule(self._loop.time())
