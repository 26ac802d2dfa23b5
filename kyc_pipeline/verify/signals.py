"""Stop requests in two stages: by a signal, a cancel or an error.

*drain*: make no new call; the calls in flight end and are recorded. *now*: give up the calls in flight too;
they become uncertain. Neither can be undone.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class StopFlag:
    """A stop request that any thread may make and any thread may watch."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._watchers: list[Callable[[], object]] = []
        self._draining = False
        self._immediate = False

    @property
    def draining(self) -> bool:
        """Whether no new call may be made."""
        return self._draining

    @property
    def immediate(self) -> bool:
        """Whether the calls in flight are to be given up too."""
        return self._immediate

    def drain(self) -> None:
        """Asks to make no new call."""
        self._set(immediate=False)

    def now(self) -> None:
        """Asks to give up the calls in flight too."""
        self._set(immediate=True)

    def escalate(self) -> None:
        """The next stage: drain, and when that was asked for already, now."""
        self._set(immediate=self._draining)

    @contextlib.contextmanager
    def watched(self, callback: Callable[[], object]) -> Iterator[None]:
        """Calls `callback` at each stage while the block runs, and at once if a stage is already reached."""
        with self._lock:
            self._watchers.append(callback)
        if self._draining:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._watchers.remove(callback)

    def _set(self, *, immediate: bool) -> None:
        # Re-entrant, since a signal handler may interrupt this very method in the same thread.
        with self._lock:
            self._draining = True
            self._immediate = self._immediate or immediate
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher()


@contextlib.contextmanager
def stop_on_signals(stop: StopFlag) -> Iterator[None]:
    """SIGINT and SIGTERM stop the run: the first one drains, the second one stops at once.

    The handlers that were there before come back when the block ends. Main thread only.
    """

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.escalate()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
