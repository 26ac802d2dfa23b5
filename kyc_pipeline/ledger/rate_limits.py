"""Rate limits that all runs on this ledger share.

Times are by the ledger's wall clock, which may have been wrong when they were written. So a time that is too
far ahead is capped.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import delete, select, update

from kyc_pipeline.ledger.database import Ledger, insert_if_absent
from kyc_pipeline.ledger.schema import rate_limits


@dataclass(slots=True)
class RateLimit:
    """The state of one rate limit. All times are microseconds since the epoch, by the ledger's clock."""

    arrival: int
    """GCRA's theoretical arrival time; initially 0."""
    paused_until: int
    """Nobody gets a permit before this time; initially 0."""
    now: int


@contextlib.contextmanager
def locked_rate_limit(
    ledger: Ledger, name: str, *, arrival_ahead: int, pause_ahead: int
) -> Iterator[RateLimit]:
    """Locks the rate limit `name` while the block runs, then stores its `arrival` and `paused_until`.

    When read, they are capped at `arrival_ahead` and `pause_ahead` microseconds from now.
    """
    this = rate_limits.c.name == name
    query = select(rate_limits.c.arrival, rate_limits.c.paused_until).where(this).with_for_update()
    with ledger.write() as connection:
        row = connection.execute(query).one_or_none()
        if row is None:
            insert_if_absent(connection, rate_limits, name=name, arrival=0, paused_until=0)
            row = connection.execute(query).one()
        now = ledger.now(connection)
        limit = RateLimit(
            min(row.arrival, now + arrival_ahead), min(row.paused_until, now + pause_ahead), now
        )
        yield limit
        values = {"arrival": limit.arrival, "paused_until": limit.paused_until}
        connection.execute(update(rate_limits).where(this).values(values))


def read_arrival(ledger: Ledger, name: str) -> int:
    """The stored arrival of the rate limit `name`; 0 if there is none. Locks nothing."""
    with ledger.read() as connection:
        query = select(rate_limits.c.arrival).where(rate_limits.c.name == name)
        return connection.execute(query).scalar_one_or_none() or 0


def list_rate_limits(ledger: Ledger) -> dict[str, RateLimit]:
    """The rate limits by name, as stored. Does not create a ledger."""
    if not ledger.exists():
        return {}
    with ledger.read() as connection:
        now = ledger.now(connection)
        return {
            row.name: RateLimit(row.arrival, row.paused_until, now)
            for row in connection.execute(select(rate_limits).order_by(rate_limits.c.name))
        }


def reset_rate_limits(ledger: Ledger) -> int:
    """Forgets all arrivals and pauses; returns how many limits there were. Waiting runs soon continue."""
    if not ledger.exists():
        return 0
    with ledger.write() as connection:
        return connection.execute(delete(rate_limits)).rowcount
