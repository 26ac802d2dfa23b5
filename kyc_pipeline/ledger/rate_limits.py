"""Rate limits that all runs on this ledger share."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select, update

from kyc_pipeline.ledger.database import Ledger, insert_if_absent
from kyc_pipeline.ledger.schema import rate_limits


@dataclass(slots=True)
class RateLimit:
    """The state of one rate limit. Both times are microseconds since the epoch, by the ledger's clock."""

    arrival: int
    """GCRA's theoretical arrival time; initially 0."""
    now: int


@contextlib.contextmanager
def locked_rate_limit(ledger: Ledger, name: str) -> Iterator[RateLimit]:
    """Locks the rate limit `name` while the block runs, then stores its `arrival`."""
    this = rate_limits.c.name == name
    query = select(rate_limits.c.arrival).where(this).with_for_update()
    with ledger.write() as connection:
        arrival = connection.execute(query).scalar_one_or_none()
        if arrival is None:
            insert_if_absent(connection, rate_limits, name=name, arrival=0)
            arrival = connection.execute(query).scalar_one()
        limit = RateLimit(arrival, ledger.now(connection))
        yield limit
        connection.execute(update(rate_limits).where(this).values(arrival=limit.arrival))
