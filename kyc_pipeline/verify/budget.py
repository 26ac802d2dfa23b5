"""The calls that a run may still start, across all its partitions."""

import threading


class CallBudget:
    """At most `max_calls` calls (None: no limit). Thread-safe."""

    def __init__(self, max_calls: int | None = None) -> None:
        self._left = max_calls
        self._lock = threading.Lock()

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
