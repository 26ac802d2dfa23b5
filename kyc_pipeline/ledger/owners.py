"""Which day owns a submission id: the primary key of `owners` decides, in one statement.

An ingest reserves its day's ids before it publishes the day. So `owners` has every id of every partition of
`submissions`, and perhaps more: ids that a killed ingest reserved, or that a day gave up. The lake shows
which of them are there (`ingest/owners.py`).

`ingests` has the version of each day's partition whose ids are known, since a partition may have another
history than the ledger: it is older than this table, or one of the two was restored from a backup. While an
ingest publishes, the row also has the token of its lease, so that an erasure can wait for it.

Transactions are short, since claims wait for them in SQLite, and they take turns. So of two days with the
same pair of documents exactly one sees the other.
"""

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import (
    ARRAY,
    Connection,
    String,
    and_,
    bindparam,
    cast,
    delete,
    func,
    not_,
    or_,
    select,
    update,
)

from kyc_pipeline.ledger.database import Ledger, insert_into, take_turns
from kyc_pipeline.ledger.leases import require_held
from kyc_pipeline.ledger.models import Lease
from kyc_pipeline.ledger.schema import ingests, leases, owners

ROWS: Final = 2_000
"""Rows of a transaction."""
_ROWS_OF_A_QUERY: Final = 500
_TURN: Final = 0x6B79636F  # "kyco": the key of PostgreSQL's advisory lock
_T = TypeVar("_T")


class Owner(NamedTuple):
    """An id and the day that owns it; or, without an id, a day that has this pair of documents."""

    submission_id: str | None
    date: str
    content_sha256: str | None
    documents_sha256: str


class Known(NamedTuple):
    """A version of a day's partition whose ids are all known."""

    date: str
    version: str


def reserve(ledger: Ledger, lease: Lease, rows: Iterable[Owner], *, sent: bool = False) -> Iterator[Owner]:
    """Makes the lease's day the owner of the ids that no day owns, and updates those that it owns.

    Yields who else has one of the ids or pairs of documents, as :func:`find` does. Ids that were `sent`
    become the day's whoever owns them. Raises :class:`LeaseLost`.
    """
    for some in portions(rows, ROWS):
        with _turn(ledger, lease) as connection:
            _add(connection, some, takes=sent)
            found = _others(connection, lease.partition_date, some)
        yield from found


def add(ledger: Ledger, rows: Iterable[Owner | Known]) -> None:
    """Adds what the lake has, unless another day owns it. A :class:`Known` follows the rows of its day."""
    for some in portions(rows, ROWS):
        with _turn(ledger) as connection:
            _add(connection, [row for row in some if isinstance(row, Owner)])
            for row in some:
                if isinstance(row, Known):
                    _note(connection, row.date, version=row.version)


def find(ledger: Ledger, date: str, rows: Iterable[Owner]) -> Iterator[Owner]:
    """The owners of these ids, and one day for each pair of documents, other than `date`."""
    for some in portions(rows, ROWS):
        with ledger.read() as connection:
            found = _others(connection, date, some)
        yield from found


def count_ids(ledger: Ledger, date: str) -> int:
    """How many ids the day owns."""
    query = select(func.count()).where(owners.c.partition_date == date)
    with ledger.read() as connection:
        return connection.execute(query).scalar_one()


def read_ids(ledger: Ledger, date: str) -> Iterator[Sequence[str]]:
    """The ids that the day owns, some at a time."""
    query = select(owners.c.submission_id).where(owners.c.partition_date == date)
    with ledger.read() as connection:
        yield from connection.execution_options(yield_per=ROWS).execute(query).scalars().partitions()


def release(ledger: Ledger, lease: Lease, ids: Iterable[str]) -> None:
    """Frees ids that the lease's day owns. Raises :class:`LeaseLost`."""
    for some in portions(ids, _ROWS_OF_A_QUERY):
        with _turn(ledger, lease) as connection:
            theirs = owners.c.partition_date == lease.partition_date
            connection.execute(delete(owners).where(theirs, owners.c.submission_id.in_(some)))


def known_versions(ledger: Ledger) -> dict[str, str]:
    """The version of each day's partition whose ids are known. Does not create a ledger."""
    if not ledger.exists():
        return {}
    query = select(ingests.c.partition_date, ingests.c.version).where(ingests.c.version.is_not(None))
    with ledger.read() as connection:
        return dict(connection.execute(query).tuples().all())


def begin(ledger: Ledger, lease: Lease) -> None:
    """Notes that the day is about to be published. Raises :class:`LeaseLost`."""
    with _turn(ledger, lease) as connection:
        _note(connection, lease.partition_date, publishing=lease.token)


def end(ledger: Ledger, lease: Lease, version: str | None) -> None:
    """Notes that the day is published, with the partition's version. Raises :class:`LeaseLost`."""
    with _turn(ledger, lease) as connection:
        _note(connection, lease.partition_date, version=version, publishing=None)


def days_being_published(ledger: Ledger) -> list[tuple[str, str]]:
    """The days that an ingest publishes, or published when it was killed, with the tokens of the leases."""
    query = (
        select(ingests.c.partition_date, ingests.c.publishing)
        .join(
            leases,
            and_(leases.c.partition_date == ingests.c.partition_date, leases.c.token == ingests.c.publishing),
        )
        .order_by(ingests.c.partition_date)
    )
    with ledger.read() as connection:
        return list(connection.execute(query).tuples().all())


def forget_versions(connection: Connection) -> None:
    """Lets the next ingest read the ids of all partitions: lake and ledger may have different histories."""
    connection.execute(update(ingests).values(version=None))


def portions(rows: Iterable[_T], size: int) -> Iterator[Sequence[_T]]:
    """The rows in order, `size` at a time, and the rest."""
    remaining = iter(rows)
    while some := list(itertools.islice(remaining, size)):
        yield some


@contextlib.contextmanager
def _turn(ledger: Ledger, lease: Lease | None = None) -> Iterator[Connection]:
    """A transaction that no other one of this module overlaps."""
    with ledger.write() as connection:
        if ledger.file is None:
            take_turns(connection, _TURN)
        if lease is not None:
            require_held(connection, lease)
        yield connection


def _add(connection: Connection, rows: Sequence[Owner], *, takes: bool = False) -> None:
    statement = insert_into(connection, owners)
    known, new = owners.c, statement.excluded
    is_same_day = known.partition_date == new.partition_date
    differs = or_(known.content_sha256 != new.content_sha256, known.documents_sha256 != new.documents_sha256)
    statement = statement.on_conflict_do_update(
        index_elements=[known.submission_id],
        set_={name: new[name] for name in ("partition_date", "content_sha256", "documents_sha256")},
        where=or_(not_(is_same_day), differs) if takes else and_(is_same_day, differs),
    )
    names = ("submission_id", "partition_date", "content_sha256", "documents_sha256")
    if rows:
        connection.execute(statement, [dict(zip(names, row, strict=True)) for row in rows])


def _others(connection: Connection, date: str, rows: Sequence[Owner]) -> list[Owner]:
    ids = _table_of(connection, [row.submission_id for row in rows])
    query = (
        select(
            owners.c.submission_id,
            owners.c.partition_date,
            owners.c.content_sha256,
            owners.c.documents_sha256,
        )
        .join_from(ids, owners, owners.c.submission_id == ids.c.value)
        .where(owners.c.partition_date != date)
    )
    found = [Owner(*row) for row in connection.execute(query)]
    pairs = _table_of(connection, sorted({row.documents_sha256 for row in rows}))
    # Two searches in the index: many rows of `date` may have the same pair.
    days = (
        select(func.min(owners.c.partition_date))
        .where(owners.c.documents_sha256 == pairs.c.value, is_other)
        .scalar_subquery()
        for is_other in (owners.c.partition_date < date, owners.c.partition_date > date)
    )
    for documents, day in connection.execute(select(pairs.c.value, func.coalesce(*days))):
        if day is not None:
            found.append(Owner(None, day, None, documents))
    return found


def _table_of(connection: Connection, texts: Sequence[str | None]) -> Any:
    """The texts as a table with a column `value`: one parameter, since thousands take long to compile."""
    if connection.dialect.name == "sqlite":
        return func.json_each(json.dumps(texts)).table_valued("value")
    array = cast(bindparam("texts", texts, unique=True), ARRAY(String))
    return func.unnest(array).table_valued("value").render_derived()


def _note(connection: Connection, date: str, **noted: str | None) -> None:
    statement = insert_into(connection, ingests).values(partition_date=date, **noted)
    connection.execute(statement.on_conflict_do_update(index_elements=[ingests.c.partition_date], set_=noted))
