"""`DEEPXL_MAX_CALLS_PER_DAY`: limits the calls of a UTC day, over all runs and hosts that share this ledger.

A claim counts as a call on the day when it was made, by its host's clock, unless its result shows that no
byte was sent. One transaction reads the day's calls and makes the claims, and limited runs take turns: so no
day exceeds its budget. A call that only a look-up knows counts on the day when it is found.

Every commit updates the number of the day's calls, since counting the attempts would get slower with each of
them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.models import AttemptResult, ClaimResult
from kyc_pipeline.ledger.queries import was_sent
from kyc_pipeline.ledger.schema import attempts, calls_of_days
from kyc_pipeline.ledger.times import SECOND, now, to_datetime
from kyc_pipeline.wording import plural

_DAY: Final = 24 * 60 * 60 * SECOND
"""The epoch began at midnight UTC."""


class DayBudget:
    """The budget as one run last saw it. Only one thread updates it; any thread may read it."""

    def __init__(self, max_calls: int | None = None) -> None:
        """`max_calls` of a day. With None there is no limit, and nothing is counted."""
        self.max_calls = max_calls
        self.left = max_calls
        """The calls left today; None without a limit."""
        self._day = 0

    def read(self, ledger: Ledger) -> "DayBudget":
        """Counts today's calls. Does not create a ledger."""
        self._day = _day_of(now())
        self.left = self.max_calls
        if self.max_calls is not None and ledger.exists():
            with ledger.read() as connection:
                self.room(connection, self._day)
        return self

    def room(self, connection: Connection, time: int) -> int | None:
        """How many more calls may be claimed at `time` (microseconds since the epoch); None without a limit.

        Lock the ledger against other claims first.
        """
        if self.max_calls is None:
            return None
        self._day = _day_of(time)
        query = select(calls_of_days.c.calls).where(calls_of_days.c.day == self._day)
        self.left = max(0, self.max_calls - (connection.execute(query).scalar() or 0))
        return self.left

    def take(self, calls: int) -> None:
        """Subtracts calls that were claimed."""
        if self.left is not None:
            self.left -= calls

    @property
    def is_used_up(self) -> bool:
        """Whether no call is left."""
        return self.left is not None and self.left <= 0

    def __str__(self) -> str:
        """How many calls are left; if none, when calls can continue."""
        budget = f"the day's budget (DEEPXL_MAX_CALLS_PER_DAY={self.max_calls})"
        if self.left is None or self.left > 0:
            return f"{budget} has {plural(self.left or 0, 'call')} left"
        until: datetime | None = to_datetime(self._day + _DAY)
        return f"{budget} is used up; it begins again at {until:%Y-%m-%d %H:%M} UTC"


def _day_of(time: int) -> int:
    return time - time % _DAY


def count_calls(connection: Connection, calls: Mapping[int, int]) -> None:
    """Adds numbers of calls, by any time of their days, to those counted so far.

    The caller has locked the ledger against other commits.
    """
    for time, number in calls.items():
        if number and not connection.execute(_ADD, {"of_day": _day_of(time), "number": number}).rowcount:
            connection.execute(insert(calls_of_days).values(day=_day_of(time), calls=number))


def unsent_calls(connection: Connection, results: Iterable[ClaimResult]) -> Counter[int]:
    """The calls that were counted when they were claimed, but of which no byte was sent, by their time.

    Call this before the results are recorded: a result that is recorded again must not count again.
    """
    unsent = [each.claim for each in results if each.result is AttemptResult.NOT_SENT]
    if not unsent:
        return Counter()
    query = select(attempts.c.started_at).where(
        attempts.c.submission_id.in_([claim.submission_id for claim in unsent]),
        attempts.c.token.in_([claim.token for claim in unsent]),
        attempts.c.ended_at.is_(None),
    )
    return Counter(connection.execute(query).scalars())


_ADD: Final = (
    update(calls_of_days)
    .where(calls_of_days.c.day == bindparam("of_day"))
    .values(calls=calls_of_days.c.calls + bindparam("number"))
)


def recount(connection: Connection) -> None:
    """Counts the calls of all days again."""
    day = attempts.c.started_at - attempts.c.started_at % _DAY
    connection.execute(delete(calls_of_days))
    counts = select(day, func.count()).where(was_sent).group_by(day)
    connection.execute(insert(calls_of_days).from_select(["day", "calls"], counts))
