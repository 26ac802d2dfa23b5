"""The calls that a run may still start, across all its partitions."""

import contextlib
import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final

_BYTES: Final = 8


class CallBudget:
    """At most `max_calls` calls (None: no limit). Thread-safe."""

    def __init__(self, max_calls: int | None = None) -> None:
        self._left = max_calls
        self._lock: AbstractContextManager[object] = threading.Lock()

    def take(self) -> bool:
        """Takes one call; False if none is left."""
        with self._lock:
            if self._left is None:
                return True
            if self._left <= 0:
                return False
            self._left -= 1
            return True

    def give_back(self) -> None:
        """Returns a call that was taken but not made."""
        with self._lock:
            if self._left is not None:
                self._left += 1

    @property
    def is_used_up(self) -> bool:
        """Whether no call is left to take."""
        with self._lock:
            return self._left is not None and self._left <= 0

    def exhaust(self) -> None:
        """Leaves no call: every further one would fail too."""
        with self._lock:
            self._left = 0

    @contextlib.contextmanager
    def lent(self) -> Iterator[int | None]:
        """Leaves the budget to other processes until the block ends; None without a limit.

        Yields a descriptor for :class:`LentBudget`, which they inherit. Do not use this object meanwhile.
        """
        if self._left is None:
            yield None
            return
        with tempfile.TemporaryFile(buffering=0) as file:
            lent = LentBudget(file.fileno())
            lent._left = self._left
            try:
                yield file.fileno()
            finally:
                self._left = lent._left


class LentBudget(CallBudget):
    """A budget that several processes take from: a number in a nameless file that they inherit."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._lock = _FileLock(file)

    @property
    def _left(self) -> int | None:
        return int.from_bytes(os.pread(self._file, _BYTES, 0), signed=True)

    @_left.setter
    def _left(self, value: int | None) -> None:
        os.pwrite(self._file, (value or 0).to_bytes(_BYTES, signed=True), 0)


class _FileLock:
    """Locks a file against other processes, and against other threads. It ends with its process."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        self._threads.release()
