"""The ledger's part in an erasure: stores tombstones, and erases submissions.

An erased submission keeps its row and its attempts under the pseudonym of its id, so that costs still add up;
its response, errors and content are removed. The table `erasures` holds the tombstones.
"""

import contextlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, func, insert, literal, select, text, update

from kyc_pipeline.ingest.lock import ingest_lock
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import hold
from kyc_pipeline.ledger.models import Decision, State
from kyc_pipeline.ledger.schema import ERASED_CONTENT, attempts, decisions, erasures, submissions
from kyc_pipeline.ledger.times import now
from kyc_pipeline.privacy.erased import Tombstone

RUN_ID: Final = "erase"
_ROWS_PER_FETCH: Final = 500
_ROWS_PER_COMMIT: Final = 500
_PLAIN: Final = re.compile(r"[A-Za-z0-9]+")


class LedgerErasure:
    """Erases people from one ledger. The read-only methods do not create a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def tombstones(self) -> list[Tombstone]:
        """All tombstones."""
        columns = erasures.c
        query = select(columns.name, columns.pseudonym, columns.key_id, columns.finished_at.is_not(None))
        return [Tombstone(*row) for row in self._rows(query)]

    def state(self) -> frozenset[tuple[object, ...]]:
        """A value that changes whenever an erasure begins, finishes sweeping the stores, or ends."""
        return frozenset(tuple(row) for row in self._rows(select(erasures)))

    def submissions(self) -> Iterator[tuple[str, str]]:
        """(submission id, date) of every submission that is not erased."""
        query = select(submissions.c.submission_id, submissions.c.partition_date).where(
            submissions.c.content_sha256 != ERASED_CONTENT
        )
        for row in self._rows(query):
            yield row[0], row[1]

    def responded_with(self, name: str, value: str, is_same: Callable[[str], bool]) -> list[str]:
        """Ids of submissions whose stored response has the tag `name` with the same value.

        `is_same` compares values; `value` only narrows the search.
        """
        query = select(submissions.c.submission_id, submissions.c.response).where(
            submissions.c.response.is_not(None)
        )
        # Whatever the JSON escapes, the value's longest run of plain characters is in the text.
        runs = _PLAIN.findall(unicodedata.normalize("NFC", value))
        if runs:
            query = query.where(submissions.c.response.contains(max(runs, key=len), autoescape=True))
        return [row[0] for row in self._rows(query) if _has_tag(row[1], name, is_same)]

    @contextlib.contextmanager
    def holding(self, dates: Sequence[str]) -> Iterator[Callable[[], None]]:
        """Holds the leases of all `dates`. Yields a function that raises :class:`LeaseLost` if one is lost.

        Raises :class:`PartitionBusy` with the holder's name if one of them is taken.
        """
        with contextlib.ExitStack() as stack:
            checks = [stack.enter_context(hold(self._ledger, date, RUN_ID)).check for date in dates]

            def check() -> None:
                for check_one in checks:
                    check_one()

            yield check

    def ingest_lock(self) -> AbstractContextManager[Callable[[], None]]:
        """Prevents ingests from reading the lake while it is rewritten; see :func:`lock.ingest_lock`."""
        return ingest_lock(self._ledger, RUN_ID)

    def remember(self, tombstones: Iterable[Tombstone]) -> None:
        """Stores new tombstones; those already stored are left unchanged."""
        with self._ledger.write() as connection:
            known = {(row.name, row.pseudonym) for row in connection.execute(select(erasures))}
            time = now()
            new = [
                {"name": each.name, "pseudonym": each.pseudonym, "key_id": each.key_id, "erased_at": time}
                for each in tombstones
                if (each.name, each.pseudonym) not in known
            ]
            if new:
                connection.execute(insert(erasures), new)

    def erase(self, pseudonyms: Mapping[str, str]) -> None:
        """Reduces submissions to their figures. `pseudonyms` maps each id to its replacement."""
        pairs = list(pseudonyms.items())
        for start in range(0, len(pairs), _ROWS_PER_COMMIT):
            with self._ledger.write() as connection:
                for submission_id, pseudonym in pairs[start : start + _ROWS_PER_COMMIT]:
                    _erase(connection, submission_id, pseudonym)

    def purge(self) -> None:
        """Removes the bytes of deleted rows from the database.

        SQLite: rewrites the file and truncates its journal; raises :class:`LedgerError` if another process
        prevents that. PostgreSQL: runs `VACUUM`.
        """
        ledger = self._ledger
        if not ledger.exists():
            return
        if ledger.file is None:
            with ledger.read() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT").execute(
                    text("VACUUM submissions, attempts, decisions")
                )
            return
        with ledger.upkeep(ledger.file) as connection:
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("VACUUM")

    def swept(self, tombstones: Iterable[Tombstone]) -> None:
        """Records that the stores were swept, so that anything read before counts as out of date."""
        self._mark(tombstones, erased_at=now())

    def finish(self, tombstones: Iterable[Tombstone]) -> None:
        """Marks tombstones as finished."""
        self._mark(tombstones, finished_at=now())

    def _mark(self, tombstones: Iterable[Tombstone], **values: int) -> None:
        with self._ledger.write() as connection:
            for each in tombstones:
                connection.execute(
                    update(erasures)
                    .where(erasures.c.name == each.name, erasures.c.pseudonym == each.pseudonym)
                    .where(erasures.c.finished_at.is_(None))
                    .values(values)
                )

    def _rows(self, query: Any) -> Iterator[Any]:
        """The rows of a query, in bounded memory. None if there is no ledger; it is not created."""
        if not self._ledger.exists():
            return
        with self._ledger.read() as connection:
            yield from connection.execution_options(yield_per=_ROWS_PER_FETCH).execute(query)


_KEPT: Final = ("partition_date", "http_status", "requested_at", "responded_at", "latency_ms")


def _erase(connection: Connection, submission_id: str, pseudonym: str) -> None:
    """Moves a submission to its pseudonym, and merges it with a row already there (of a restored ledger)."""
    theirs = submissions.c.submission_id == submission_id
    known = select(submissions.c.state)
    state = connection.execute(known.where(theirs).with_for_update()).scalar_one_or_none()
    if state is None:
        return
    if connection.execute(known.where(submissions.c.submission_id == pseudonym)).one_or_none() is None:
        # No run will settle an open claim any more. An uncertain submission must not be sent or held.
        settled = State.UNCERTAIN if state == State.CLAIMED else state
        decision = Decision.ABANDON if settled == State.UNCERTAIN else None
        columns = ["submission_id", "content_sha256", "state", "decision", "updated_at", *_KEPT]
        connection.execute(
            insert(submissions).from_select(
                columns,
                select(
                    literal(pseudonym),
                    literal(ERASED_CONTENT),
                    literal(settled),
                    literal(decision),
                    literal(now()),
                    *(submissions.c[name] for name in _KEPT),
                ).where(theirs),
            )
        )
    earlier = connection.execute(
        select(func.coalesce(func.max(attempts.c.number), 0)).where(attempts.c.submission_id == pseudonym)
    ).scalar_one()
    connection.execute(
        update(attempts)
        .where(attempts.c.submission_id == submission_id)
        .values(submission_id=pseudonym, number=attempts.c.number + earlier, error=None, body=None)
    )
    connection.execute(
        update(decisions)
        .where(decisions.c.submission_id == submission_id)
        .values(submission_id=pseudonym, reason=None)
    )
    connection.execute(submissions.delete().where(theirs))


def _has_tag(response: str, name: str, is_same: Callable[[str], bool]) -> bool:
    """Whether a response has the tag anywhere: as `{"name": …, "value": …}` or as `{name: value}`."""
    try:
        todo: list[object] = [msgspec.json.decode(response)]
    except (ValueError, RecursionError):
        return False
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += value
        elif isinstance(value, dict):
            values = [value.get(name), value.get("value") if value.get("name") == name else None]
            if any(isinstance(each, str | int) and is_same(str(each)) for each in values):
                return True
            todo += value.values()
    return False
