"""Clocks and times of the ledger: whole microseconds, so that both databases keep them exactly.

Two clocks, because neither is right alone. The *wall clock* means the same on every machine and after a
reboot, but it can be wrong and can be set. The *boot clock* counts from the start of the machine: nothing
sets it, and it counts the time that the machine sleeps, which `time.monotonic` does not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, overload

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# macOS has no such clock, but its CLOCK_MONOTONIC counts sleep.
_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> int:
    """The time by this machine's wall clock, since the epoch."""
    return time.time_ns() // 1000


def since_boot() -> int:
    """The time by this machine's boot clock. Comparable only within one boot of one machine."""
    return time.clock_gettime_ns(_BOOT_CLOCK) // 1000


@dataclass(frozen=True, slots=True)
class Clock:
    """Both clocks. Tests and simulations give a ledger their own."""

    now: Callable[[], int] = now
    since_boot: Callable[[], int] = since_boot


SECOND: Final = 1_000_000
"""In the ledger's unit."""
SYSTEM_CLOCK: Final = Clock()


@overload
def to_microseconds(moment: datetime) -> int: ...
@overload
def to_microseconds(moment: datetime | None) -> int | None: ...
def to_microseconds(moment: datetime | None) -> int | None:
    """A moment with a time zone as the ledger stores it."""
    return None if moment is None else (moment - _EPOCH) // timedelta(microseconds=1)


@overload
def to_datetime(microseconds: int) -> datetime: ...
@overload
def to_datetime(microseconds: int | None) -> datetime | None: ...
def to_datetime(microseconds: int | None) -> datetime | None:
    """A stored time in UTC."""
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)
