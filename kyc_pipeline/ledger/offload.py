"""Moves the responses of finished days out of the ledger: the lake has them, too.

A response's text leaves the ledger only after it was read from `verification_responses` and was the same;
its SHA-256 stays. Both happen under the day's lease, without which nobody replaces that partition: a run
that was suspended and has lost its lease finds its draft gone, or in an object store another version than it
may replace. So each text is in one of the stores at any moment, whatever is killed.

The partition is written from the ledger. So before it is replaced, `recall` brings the texts back.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, func, select, text, update

from kyc_pipeline.lake.storage import Lake, PartitionMissing, PartitionUnreadable
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger.audit import AuditAction, AuditTrail, Details
from kyc_pipeline.ledger.database import Ledger, WrongLedger, insert_if_absent
from kyc_pipeline.ledger.leases import require_held
from kyc_pipeline.ledger.models import Lease, State
from kyc_pipeline.ledger.schema import offloaded_days, submissions

_ROWS: Final = 500
"""Rows of one transaction: runs of other days wait only briefly."""
_rows: Final = submissions.c
_this: Final = _rows.submission_id == bindparam("key")
_TO_LAKE: Final = update(submissions).where(_this).values(response=None, response_sha256=bindparam("sha256"))
_TO_LAKE_SQLITE: Final = text(
    "UPDATE submissions SET response = NULL, response_sha256 = :sha256,"
    " rowid = (SELECT max(rowid) + 1 FROM submissions) WHERE submission_id = :key"
)
"""SQLite keeps the space of a row that got shorter in its page. So the row moves to the end of the table."""
_TO_LEDGER: Final = update(submissions).where(_this).values(response=bindparam("text"), response_sha256=None)


@dataclass(frozen=True, slots=True)
class Offloaded:
    """What an offload did to one day."""

    moved: int
    """Responses that only the lake has now."""
    kept: int
    """Responses that the ledger keeps, because the lake has none of the submission, or another one."""


def offload(lake: Lake, ledger: Ledger, lease: Lease, trail: AuditTrail) -> Offloaded:
    """Removes from the ledger the responses of the lease's day that the lake has, after comparing them.

    The transaction that finishes the day adds an entry to `trail`. Repeat it if it was killed. Raises
    :class:`LeaseLost`.
    """
    date, moved = lease.partition_date, 0
    with _under(ledger, lease):
        lake.revoke_drafts(VERIFICATION_RESPONSES, date)
    for texts in _in_lake(lake, date):
        with _under(ledger, lease) as connection:
            query = select(_rows.submission_id, _rows.response).where(
                _rows.submission_id.in_(list(texts)), _in_ledger(date)
            )
            same = [
                {"key": key, "sha256": _sha256(response)}
                for key, response in connection.execute(query).tuples()
                if texts[key] == response
            ]
            if same:
                insert_if_absent(connection, offloaded_days, partition_date=date)
                connection.execute(_TO_LAKE if ledger.file is None else _TO_LAKE_SQLITE, same)
                moved += len(same)
    with _under(ledger, lease) as connection:
        kept = _count(connection, _in_ledger(date))
        if not kept:
            insert_if_absent(connection, offloaded_days, partition_date=date)
            connection.execute(
                update(offloaded_days)
                .where(offloaded_days.c.partition_date == date)
                .values(finished_at=ledger.now(connection))
            )
            details: Details = {"date": date, "responses": _count(connection, _only_in_lake(date))}
            trail.append(connection, AuditAction.OFFLOAD, [None], details)
    return Offloaded(moved, kept)


def recall(lake: Lake, ledger: Ledger, lease: Lease) -> int:
    """Brings the responses of the lease's day back into the ledger; returns how many.

    Call it before the day's partition is replaced. Raises :class:`LeaseLost`; :class:`WrongLedger` if the
    lake no longer has a response as it was.
    """
    date, back = lease.partition_date, 0
    if date not in offloaded_dates(ledger):
        return 0
    for texts in _kept_in_lake(lake, date):
        with _under(ledger, lease) as connection:
            rows = _same_in_lake(connection, date, texts)
            if rows:
                connection.execute(_TO_LEDGER, rows)
                back += len(rows)
    with _under(ledger, lease) as connection:
        if lost := _count(connection, _only_in_lake(date)):
            raise WrongLedger(_lost(lake, date, lost))
        connection.execute(delete(offloaded_days).where(offloaded_days.c.partition_date == date))
    return back


def offloaded_dates(ledger: Ledger, *, only_finished: bool = False) -> set[str]:
    """The days with responses that only the lake has. Does not create a ledger."""
    if not ledger.exists():
        return set()
    query = select(offloaded_days.c.partition_date)
    if only_finished:
        query = query.where(offloaded_days.c.finished_at.is_not(None))
    with ledger.read() as connection:
        return set(connection.execute(query).scalars())


def check_offloaded(lake: Lake, ledger: Ledger) -> int:
    """Compares with the lake every response that only the lake has; returns how many.

    Raises :class:`WrongLedger`, which names the day, if one is missing there or is another one.
    """
    total = 0
    for date in sorted(offloaded_dates(ledger)):
        found = 0
        for texts in _kept_in_lake(lake, date):
            with ledger.read() as connection:
                found += len(_same_in_lake(connection, date, texts))
        with ledger.read() as connection:
            expected = _count(connection, _only_in_lake(date))
        if found < expected:
            raise WrongLedger(_lost(lake, date, expected - found))
        total += found
    return total


def _lost(lake: Lake, date: str, count: int) -> str:
    return (
        f"{count} of the responses of {date} were moved to the lake, which no longer has them: restore "
        f"{lake.path(VERIFICATION_RESPONSES, date)} from a backup; if the ledger is a backup from before an "
        "erasure, repeat the erasure instead"
    )


@contextlib.contextmanager
def _under(ledger: Ledger, lease: Lease) -> Iterator[Connection]:
    """A write transaction that the lease covers to its end."""
    with ledger.write() as connection:
        require_held(connection, lease)
        yield connection


def _in_lake(lake: Lake, date: str) -> Iterator[dict[str, str]]:
    """The texts of the day's partition by submission id, in parts. A day without a partition has none."""
    try:
        for batch in lake.batches(VERIFICATION_RESPONSES, date, ["submission_id", "response"], _ROWS):
            with_text = batch.filter(batch["response"].is_valid())
            columns = (map(str, with_text[name].to_pylist()) for name in ("submission_id", "response"))
            yield dict(zip(*columns, strict=True))
    except PartitionMissing:
        return


def _kept_in_lake(lake: Lake, date: str) -> Iterator[dict[str, str]]:
    """As `_in_lake`, for a partition that is the only copy: it cannot be materialized again."""
    try:
        yield from _in_lake(lake, date)
    except PartitionUnreadable as error:
        raise WrongLedger(
            f"the responses of {date} were moved to the lake, whose file cannot be read: restore "
            f"{lake.path(VERIFICATION_RESPONSES, date)} from a backup"
        ) from error


def _in_ledger(date: str) -> ColumnElement[bool]:
    return and_(_rows.partition_date == date, _rows.state == State.COMPLETED, _rows.response.is_not(None))


def _only_in_lake(date: str) -> ColumnElement[bool]:
    return and_(_rows.partition_date == date, _rows.response_sha256.is_not(None))


def _same_in_lake(connection: Connection, date: str, texts: dict[str, str]) -> list[dict[str, str]]:
    """Those of `texts` that only the lake has, if they have the hash that the ledger kept."""
    query = select(_rows.submission_id, _rows.response_sha256).where(
        _rows.submission_id.in_(list(texts)), _only_in_lake(date)
    )
    return [
        {"key": key, "text": texts[key]}
        for key, sha256 in connection.execute(query).tuples()
        if _sha256(texts[key]) == sha256
    ]


def _count(connection: Connection, which: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(submissions).where(which)
    return int(connection.execute(query).scalar_one())


def _sha256(response: str) -> str:
    return hashlib.sha256(response.encode()).hexdigest()
