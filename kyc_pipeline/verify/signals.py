"""Stop requests in two stages, from a signal, a cancel or an error.

*drain*: start no new call; the calls in flight finish and are recorded. *now*: abandon the calls in flight
too; they become uncertain. Neither can be undone.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class StopFlag:
    """A stop request that any thread may make or watch."""

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
        """Whether to abandon the calls in flight too."""
        return self._immediate

    def drain(self) -> None:
        """Stops new calls."""
        self._set(immediate=False)

    def now(self) -> None:
        """Abandons the calls in flight too."""
        self._set(immediate=True)

    def escalate(self) -> None:
        """Requests the next stage: drain, then now."""
        self._set(immediate=self._draining)

    @contextlib.contextmanager
    def watched(self, callback: Callable[[], object]) -> Iterator[None]:
        """Calls `callback` at each stage until the block ends; at once if a stage was already requested."""
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
        # The lock is re-entrant: a signal handler may interrupt this method in the same thread.
        with self._lock:
            self._draining = True
            self._immediate = self._immediate or immediate
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher()


@contextlib.contextmanager
def stop_on_signals(stop: StopFlag) -> Iterator[None]:
    """Stops the run on SIGINT and SIGTERM: the first drains, the second stops at once.

    Restores the earlier handlers when the block ends. Main thread only.
    """

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.escalate()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
