"""Times in the ledger: microseconds since the epoch, so that both databases keep them exactly."""

import time
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> int:
    """The time by this machine's clock."""
    return time.time_ns() // 1000


def to_microseconds(moment: datetime | None) -> int | None:
    """A moment with a time zone as the ledger stores it."""
    return None if moment is None else (moment - _EPOCH) // timedelta(microseconds=1)


def to_datetime(microseconds: int | None) -> datetime | None:
    """A stored time in UTC."""
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)
