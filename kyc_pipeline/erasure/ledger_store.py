"""The ledger's part in an erasure: stores tombstones, and erases submissions.

An erased submission keeps its row and its attempts under the pseudonym of its id, so that costs still add up;
its response, errors and content are removed. The table `erasures` holds the tombstones.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    Column,
    Connection,
    LargeBinary,
    Table,
    and_,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)

from kyc_pipeline.deepxl.call_errors import ContractBroken
from kyc_pipeline.deepxl.contract import reread
from kyc_pipeline.ingest.lock import labels_lock
from kyc_pipeline.ingest.owners import wait_for_ingests
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import hold
from kyc_pipeline.ledger.legal_holds import LegalHold, key_ids, read_holds
from kyc_pipeline.ledger.models import Decision, State
from kyc_pipeline.ledger.offload import offloaded_dates
from kyc_pipeline.ledger.pseudonym_key import use_key
from kyc_pipeline.ledger.schema import (
    ERASED_CONTENT,
    attempts,
    decisions,
    erasures,
    legal_holds,
    owners,
    submissions,
    vendor_deletions,
)
from kyc_pipeline.ledger.times import now
from kyc_pipeline.ledger.transfer import check_idle
from kyc_pipeline.ledger.vendor_deletions import VendorRecord, find_records, register
from kyc_pipeline.privacy.erased import Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.privacy.spelling import fold
from kyc_pipeline.vocabulary import SUBMISSION_TAG

RUN_ID: Final = "erase"
_ROWS_PER_FETCH: Final = 500
_ROWS_PER_COMMIT: Final = 500
_VACUUM: Final = "VACUUM owners, submissions, attempts, decisions, vendor_deletions, erasures, legal_holds"
_PLAIN: Final = re.compile(r"[a-z0-9]+")


class Rekeyed(NamedTuple):
    """What was replaced in the ledger with a new key."""

    former: str | None
    """The id of the ledger's key until then; None if it had none."""
    tombstones: int
    legal_holds: int


class LedgerErasure:
    """Erases people from one ledger. The read-only methods do not create a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def tombstones(self) -> list[Tombstone]:
        """All tombstones."""
        columns = erasures.c
        is_finished = columns.finished_at.is_not(None)
        query = select(columns.name, columns.pseudonym, columns.key_id, is_finished, columns.earlier_keys)
        return [
            Tombstone(name, pseudonym, key_id, finished, key_ids(earlier))
            for name, pseudonym, key_id, finished, earlier in self._rows(query)
        ]

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

    def offloaded_dates(self) -> set[str]:
        """The days with responses that only the lake has; see `offload.py`."""
        return offloaded_dates(self._ledger)

    def give_up_offloaded(self, submission_ids: Iterable[str]) -> None:
        """From now on, nobody expects the responses of these submissions in the lake."""
        ids = sorted(submission_ids)
        for start in range(0, len(ids), _ROWS_PER_COMMIT):
            part = submissions.c.submission_id.in_(ids[start : start + _ROWS_PER_COMMIT])
            with self._ledger.write() as connection:
                connection.execute(update(submissions).where(part).values(response_sha256=None))

    def owned(self) -> Iterator[str]:
        """Ids that a day owns, but that were never sent."""
        was_sent = select(submissions.c.submission_id).where(
            submissions.c.submission_id == owners.c.submission_id
        )
        for row in self._rows(select(owners.c.submission_id).where(~was_sent.exists())):
            yield row[0]

    def responded_with(self, value: str, has: Callable[[str, str], bool]) -> list[str]:
        """Ids of submissions whose response in the ledger has a tag for which `has(name, value)` is true.

        `value` only narrows the search: it is one of the spellings that `has` accepts.
        """
        response = submissions.c.response
        query = select(submissions.c.submission_id, response).where(response.is_not(None))
        if run := plain_run(value):
            size = func.octet_length if self._ledger.file is None else _sqlite_size
            query = query.where(
                response.icontains(run, autoescape=True)
                | response.contains("\\u", autoescape=True)
                | (size(response) != func.length(response))
            )
        return [row[0] for row in self._rows(query) if has_tag(row[1], has)]

    def holds(self) -> list[LegalHold]:
        """All legal holds."""
        return read_holds(self._ledger)

    def responses_of(self, submission_ids: Iterable[str]) -> Iterator[str]:
        """The responses of these submissions in the ledger."""
        ids = sorted(submission_ids)
        for start in range(0, len(ids), _ROWS_PER_FETCH):
            part = submissions.c.submission_id.in_(ids[start : start + _ROWS_PER_FETCH])
            query = select(submissions.c.response).where(part, submissions.c.response.is_not(None))
            for row in self._rows(query):
                yield row[0]

    def rows_of(
        self, submission_ids: Collection[str], pseudonyms: Collection[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """All that the ledger has of these submissions, by table. `pseudonyms` are those of their ids."""
        columns = [table.c.submission_id for table in (owners, submissions, attempts, decisions)]
        wanted = [(column, sorted(submission_ids)) for column in columns]
        wanted.append((vendor_deletions.c.submission, sorted(pseudonyms)))
        return {
            column.table.name: [
                dict(row._mapping)
                for start in range(0, len(values), _ROWS_PER_FETCH)
                for row in self._rows(
                    select(column.table)
                    .where(column.in_(values[start : start + _ROWS_PER_FETCH]))
                    .order_by(*column.table.primary_key.columns)
                )
            ]
            for column, values in wanted
        }

    def vendor_records(self, ids: Iterable[str], found: dict[str, VendorRecord]) -> None:
        """Adds to `found` what the calls of these submissions may have left at DeepXL."""
        find_records(self._ledger, sorted(ids), found, _verification_id)

    def register(
        self, records: Mapping[str, VendorRecord], pseudonyms: Mapping[str, str], request: str | None
    ) -> None:
        """Registers what DeepXL must delete."""
        register(self._ledger, records, pseudonyms, request)

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

    def labels_lock(self) -> AbstractContextManager[Callable[[], None]]:
        """Prevents labels from being read while they are rewritten; see :func:`lock.labels_lock`."""
        return labels_lock(self._ledger, RUN_ID)

    def wait_for_ingests(self, lake: Lake) -> None:
        """Waits until whatever is being published is in the lake. Raises :class:`PartitionBusy`."""
        wait_for_ingests(lake, self._ledger, RUN_ID)

    def remember(self, tombstones: Iterable[Tombstone]) -> None:
        """Stores new tombstones; those already stored are left unchanged."""
        with self._ledger.write() as connection:
            known = {(row.name, row.pseudonym) for row in connection.execute(select(erasures))}
            time = self._ledger.now(connection)
            new = [
                {"name": each.name, "pseudonym": each.pseudonym, "key_id": each.key_id, "erased_at": time}
                for each in tombstones
                if (each.name, each.pseudonym) not in known
            ]
            if new:
                connection.execute(insert(erasures), new)

    def rekey(
        self, pseudonymizer: Pseudonymizer, record: Callable[[Connection, Rekeyed], None]
    ) -> Rekeyed | None:
        """Makes this the ledger's key and replaces all pseudonyms, in one transaction, which `record` gets.

        Returns None if there was nothing to do. Raises :class:`KycError` if a run is active.
        """
        with self._ledger.write() as connection:
            check_idle(self._ledger, connection)
            former = use_key(connection, pseudonymizer.key_id)
            counts = Counter(
                {table.name: _rekey(connection, table, pseudonymizer) for table in (erasures, legal_holds)}
            )
            if former == pseudonymizer.key_id and not counts.total():
                return None
            rekeyed = Rekeyed(former, counts[erasures.name], counts[legal_holds.name])
            record(connection, rekeyed)
        return rekeyed

    def erase(self, pseudonyms: Mapping[str, str]) -> None:
        """Reduces submissions to their figures. `pseudonyms` maps each id to its replacement."""
        pairs = list(pseudonyms.items())
        for start in range(0, len(pairs), _ROWS_PER_COMMIT):
            with self._ledger.write() as connection:
                for submission_id, pseudonym in pairs[start : start + _ROWS_PER_COMMIT]:
                    connection.execute(delete(owners).where(owners.c.submission_id == submission_id))
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
                connection.execution_options(isolation_level="AUTOCOMMIT").execute(text(_VACUUM))
            return
        with ledger.upkeep(ledger.file) as connection:
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("VACUUM")

    def swept(self, tombstones: Iterable[Tombstone]) -> None:
        """Records that the stores were swept, so that anything read before counts as out of date."""
        self._mark(tombstones, erasures.c.erased_at)

    def finish(self, tombstones: Iterable[Tombstone]) -> None:
        """Marks tombstones as finished."""
        self._mark(tombstones, erasures.c.finished_at)

    def _mark(self, tombstones: Iterable[Tombstone], column: Column[Any]) -> None:
        with self._ledger.write() as connection:
            time = self._ledger.now(connection)
            for each in tombstones:
                connection.execute(
                    update(erasures)
                    .where(erasures.c.name == each.name, erasures.c.pseudonym == each.pseudonym)
                    .where(erasures.c.finished_at.is_(None))
                    .values({column: time})
                )

    def _rows(self, query: Any) -> Iterator[Any]:
        """The rows of a query, in bounded memory. Without a ledger there are no rows, and none is created."""
        if not self._ledger.exists():
            return
        with self._ledger.read() as connection:
            yield from connection.execution_options(yield_per=_ROWS_PER_FETCH).execute(query)


def _rekey(connection: Connection, table: Table, pseudonymizer: Pseudonymizer) -> int:
    """Replaces the pseudonyms of other keys in `erasures` or `legal_holds`; returns how many."""
    columns = table.c
    rows = connection.execute(
        select(columns.name, columns.pseudonym, columns.key_id, columns.earlier_keys).where(
            columns.key_id != pseudonymizer.key_id
        )
    ).all()
    for name, pseudonym, key_id, earlier in rows:
        new = Tombstone(name, pseudonym, key_id, earlier_keys=key_ids(earlier)).rekeyed(pseudonymizer)
        this = and_(columns.name == name, columns.pseudonym == pseudonym)
        there = select(columns.name).where(columns.name == name, columns.pseudonym == new.pseudonym)
        if connection.execute(there).first() is not None:  # a restore kept it of the former ledger
            connection.execute(delete(table).where(this))
        else:
            values = {"pseudonym": new.pseudonym, "key_id": new.key_id}
            values["earlier_keys"] = ",".join(new.earlier_keys)
            connection.execute(update(table).where(this).values(values))
        if table is erasures and name == SUBMISSION_TAG:  # its pseudonym stands in place of its id
            _erase(connection, pseudonym, new.pseudonym)
            connection.execute(
                update(vendor_deletions)
                .where(vendor_deletions.c.submission == pseudonym)
                .values(submission=new.pseudonym)
            )
    return len(rows)


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
        .values(submission_id=pseudonym, number=attempts.c.number + earlier, error=None, body=None, sent=None)
    )
    connection.execute(
        update(decisions)
        .where(decisions.c.submission_id == submission_id)
        .values(submission_id=pseudonym, reason=None)
    )
    connection.execute(submissions.delete().where(theirs))


def _sqlite_size(value: Any) -> Any:
    return func.length(cast(value, LargeBinary))


def _verification_id(response: str) -> int | None:
    """The verification id of a stored response; None if it breaks the contract."""
    try:
        return reread(response).verification_id
    except ContractBroken:
        return None


def plain_run(value: str) -> str:
    """The longest run of plain characters in `value`: they are in any JSON text that has it.

    Unless the text escapes them, or has them in other characters, such as full-width digits.
    """
    return max(_PLAIN.findall(fold(value)), key=len, default="")


def has_tag(response: str, has: Callable[[str, str], bool]) -> bool:
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
            pairs = [*value.items(), (value.get("name"), value.get("value"))]
            if any(
                isinstance(name, str) and isinstance(each, str | int) and has(name, str(each))
                for name, each in pairs
            ):
                return True
            todo += value.values()
    return False
