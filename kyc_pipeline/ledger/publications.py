"""The turns of publications: over all hosts that share a ledger, one build at a time, and their numbers.

A publication has a number, its *sequence*, which is reserved before the build reads anything and never used
again. The ledger remembers where each published build is until another one replaces it, so it knows the
copies on other hosts that may still contain somebody who was erased.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import delete, func, insert, select, update

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.locks import LOCK_SECONDS, exclusive
from kyc_pipeline.ledger.schema import erasures, publications
from kyc_pipeline.ledger.times import to_datetime

PUBLISH_LOCK: Final = "publish"


class Copy(NamedTuple):
    """A published build."""

    place: str
    """Its `s3://` URL, or the host and its path."""
    sequence: int
    began: datetime | None
    """When its build began (UTC)."""


def publication_lock(
    ledger: Ledger, run_id: str, *, wait_seconds: float = LOCK_SECONDS
) -> AbstractContextManager[Callable[[], None]]:
    """Holds the lock without which two hosts could build over each other; see :func:`exclusive`."""
    return exclusive(ledger, PUBLISH_LOCK, run_id, others="another publication", wait_seconds=wait_seconds)


def reserve(ledger: Ledger, place: str, run_id: str, *, above: int = 0) -> int:
    """Reserves and returns the sequence of a build that begins now, higher than `above` and all before.

    `above` is the sequence of the published build, which a restored ledger may not know. Call it while
    the publication lock is held.
    """
    with ledger.write() as connection:
        highest = connection.execute(select(func.max(publications.c.sequence))).scalar() or 0
        sequence = max(highest, above) + 1
        connection.execute(
            insert(publications).values(
                sequence=sequence, place=place, run_id=run_id, began_at=ledger.now(connection)
            )
        )
        return sequence


def record(ledger: Ledger, sequence: int) -> None:
    """Records that the build was published.

    Call it before the old build is replaced: a copy that the ledger does not know would be worse than one
    that it only believes to exist.
    """
    rows = publications.c
    with ledger.write() as connection:
        connection.execute(
            update(publications).where(rows.sequence == sequence).values(published_at=ledger.now(connection))
        )


def forget_replaced(ledger: Ledger, sequence: int, *, replaced: int = 0) -> None:
    """Forgets what the published build has replaced, and the builds that were never published."""
    rows = publications.c
    with ledger.write() as connection:
        place = select(rows.place).where(rows.sequence == sequence).scalar_subquery()
        is_over = (rows.sequence == replaced) | (rows.place == place) | rows.published_at.is_(None)
        connection.execute(delete(publications).where(rows.sequence < sequence, is_over))


def forget_place(ledger: Ledger, place: str) -> int:
    """Forgets the copies at a place that no longer exists; returns how many."""
    rows = publications.c
    with ledger.write() as connection:
        # The row stays until the next publication, because its sequence must not be used again.
        return connection.execute(
            update(publications)
            .where(rows.place == place, rows.published_at.is_not(None))
            .values(published_at=None)
        ).rowcount


def list_copies(ledger: Ledger) -> list[Copy]:
    """The published builds, the oldest first. Does not create a ledger."""
    return _copies(ledger, only_outdated=False)


def copies_before_erasure(ledger: Ledger) -> list[Copy]:
    """The published builds that began before the last erasure, and may still contain the person."""
    return _copies(ledger, only_outdated=True)


def last_erasure(ledger: Ledger) -> datetime | None:
    """When the last erasure swept the stores; None if there was none. Does not create a ledger."""
    if not ledger.exists():
        return None
    with ledger.read() as connection:
        return to_datetime(connection.execute(select(func.max(erasures.c.erased_at))).scalar())


def _copies(ledger: Ledger, *, only_outdated: bool) -> list[Copy]:
    if not ledger.exists():
        return []
    rows = publications.c
    query = select(rows.place, rows.sequence, rows.began_at).where(rows.published_at.is_not(None))
    if only_outdated:
        query = query.where(rows.began_at <= select(func.max(erasures.c.erased_at)).scalar_subquery())
    with ledger.read() as connection:
        return [
            Copy(place, sequence, to_datetime(began))
            for place, sequence, began in connection.execute(query.order_by(rows.sequence))
        ]
