"""The periods of the report's filter, and the days or weeks of its time charts.

Knows neither the warehouse nor the charts.
"""

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DAILY_UP_TO: Final = 120
"""Longer periods are drawn by week."""
_DENSE_FROM: Final = 32
"""From this number of points, intervals are drawn as one band instead of a bar each."""
_TICKS: Final = 7
_LENGTHS: Final = (7, 28, 90)
_WEEKS: Final = 52
_DAY: Final = datetime.timedelta(days=1)
_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Period:
    """One choice of the filter: the days from `since` to `until`, the last day of the data, both included."""

    key: str
    label: str
    since: datetime.date
    until: datetime.date
    unit: str
    """`day` or `week`: what one point of a time chart covers."""

    @property
    def days(self) -> int:
        """Calendar days, with and without data."""
        return (self.until - self.since).days + 1

    @property
    def first_start(self) -> datetime.date:
        """The first day of the first point."""
        return _monday(self.since) if self.unit == "week" else self.since

    @property
    def starts(self) -> Sequence[datetime.date]:
        """The first day of every point, also of those without data."""
        step = 7 if self.unit == "week" else 1
        first = self.first_start
        return [first + _DAY * offset for offset in range(0, (self.until - first).days + 1, step)]

    @property
    def shown(self) -> dict[str, str | int | bool | list[int]]:
        """The value of the charts' parameter `shown`; times are epoch milliseconds."""
        half = (7 if self.unit == "week" else 1) * _MS // 2
        starts = self.starts
        return {
            "key": self.key,
            "unit": self.unit,
            "since": epoch_ms(self.first_start),
            "from": epoch_ms(starts[0]) - half,
            "to": epoch_ms(starts[-1]) + half,
            "points": len(starts),
            # Counted back from the last point, which readers look for.
            "ticks": [epoch_ms(start) for start in starts[:: -max(1, math.ceil(len(starts) / _TICKS))]],
            "dense": len(starts) >= _DENSE_FROM,
            "long": self.days > DAILY_UP_TO + DAILY_UP_TO // 2,
        }


def choose_periods(first: datetime.date, last: datetime.date) -> list[Period]:
    """The periods for data from `first` to `last`, all days first."""
    days = (last - first).days + 1
    periods = [Period("all", "All days", first, last, "day" if days <= DAILY_UP_TO else "week")]
    weeks_from = _monday(last) - 7 * _DAY * (_WEEKS - 1)
    if weeks_from > first:
        periods.append(Period("weeks", f"Last {_WEEKS} weeks", weeks_from, last, "week"))
    lengths = (length for length in reversed(_LENGTHS) if length < days)
    return periods + [
        Period(str(length), f"Last {length} days", last - _DAY * (length - 1), last, "day")
        for length in lengths
    ]


def epoch_ms(day: datetime.date) -> int:
    """The day's beginning in UTC, in epoch milliseconds."""
    return (day - datetime.date(1970, 1, 1)).days * _MS


def _monday(day: datetime.date) -> datetime.date:
    return day - _DAY * day.weekday()
