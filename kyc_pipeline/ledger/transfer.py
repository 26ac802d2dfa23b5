"""Moves a ledger's content to another URL, or restores it from a backup and the lake."""

import contextlib
import hashlib
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from sqlalchemy import ColumnElement, Connection, Table, delete, func, insert, select, text, update

from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.lake.atomic import move_into_place
from kyc_pipeline.lake.identity import LakeIdentity, note_generation, read_lake_identity, write_lake_identity
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import STATE_KEY, SUBMISSIONS, VERIFICATION_RESPONSES, ResponsesState
from kyc_pipeline.ledger import sqlite
from kyc_pipeline.ledger.audit import newest_entry
from kyc_pipeline.ledger.database import Ledger, LedgerError, WrongLedger
from kyc_pipeline.ledger.day_budget import recount
from kyc_pipeline.ledger.identity import (
    check_bond,
    check_health,
    check_outcomes,
    lock_identity,
    read_identity,
)
from kyc_pipeline.ledger.models import AttemptResult, Decision, Entry, State
from kyc_pipeline.ledger.owners import forget_versions
from kyc_pipeline.ledger.process import ProcessIdentity
from kyc_pipeline.ledger.queries import RESPONSE_COLUMNS, is_undecided, read_responses
from kyc_pipeline.ledger.schema import (
    attempts,
    audit,
    erasures,
    identity,
    leases,
    legal_holds,
    metadata,
    submissions,
    vendor_deletions,
)
from kyc_pipeline.ledger.times import now, to_microseconds
from kyc_pipeline.scratch import scratch_folder
from kyc_pipeline.vocabulary import SETTLED, Outcome

_ROWS: Final = 500
_COPIED: Final = [table for table in metadata.sorted_tables if table is not leases]
"""All but the leases: they belong to processes, and none is held while a ledger is copied."""
_SETTLED: Final = frozenset(State(outcome) for outcome in SETTLED)


def move(lake: Lake, source: Ledger, target: Ledger) -> dict[str, int]:
    """Copies everything to `target`, which must be empty, and puts `source` out of use.

    Returns the rows of each table, once counts and digests agree. Raises :class:`KycError` if a run is
    active, and if anything differs; the source then stays in use.
    """
    check_bond(lake, source)
    check_health(source)
    check_health(target)
    with source.write() as connection:
        check_idle(source, connection)
        # Now no run can claim. A change by another command makes the digests differ.
        connection.execute(update(identity).values(moved_to=target.name))
    try:
        rows = _copy(source, target)
        with target.write() as connection:
            connection.execute(update(identity).values(moved_to=None, generation=identity.c.generation + 1))
    except BaseException:
        with source.write() as connection:
            connection.execute(update(identity).values(moved_to=None))
        raise
    note_generation(lake, read_identity(target).generation)
    return rows


@contextlib.contextmanager
def opened_backup(backup: Path) -> Iterator[Ledger]:
    """The ledger in a backup, or in a file that was set aside. It opens a copy: the file stays unchanged."""
    if not backup.is_file():
        raise UsageError(f"there is no backup {backup}")
    with scratch_folder() as folder:
        copy = Path(folder) / "ledger.sqlite"
        try:
            shutil.copyfile(backup, copy)
            # An older version was copied with its log, or a killed run left its journal.
            for side in ("-wal", "-journal"):
                log = backup.with_name(f"{backup.name}{side}")
                if log.exists() and (side == "-journal" or sqlite.uses_wal(backup)):
                    shutil.copyfile(log, copy.with_name(f"{copy.name}{side}"))
        except OSError as error:
            raise KycError(f"cannot copy the backup {backup}: {error.strerror}") from error
        with Ledger(f"sqlite:///{copy}") as ledger:
            try:
                is_ledger = ledger.exists()
            except LedgerError as error:
                raise LedgerError(str(error).replace(ledger.name, str(backup))) from None
            if not is_ledger:
                raise UsageError(f"the backup {backup} is not a ledger")
            yield ledger


def set_aside(ledger: Ledger) -> Path | None:
    """Renames the SQLite file and its side files, durably. Returns the file's new name; None without one."""
    if ledger.file is None:
        return None
    ledger.close()
    mark = f"replaced-{secrets.token_hex(4)}"
    # The file itself comes last: a power cut leaves no side file beside the new ledger that takes its place.
    for side in ("-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            move_into_place(f"{ledger.file}{side}", f"{ledger.file}.{mark}{side}")
    if not ledger.file.exists():
        return None
    aside = ledger.file.with_name(f"{ledger.file.name}.{mark}")
    move_into_place(ledger.file, aside)
    return aside


def check_backup(lake: Lake, backup: Ledger) -> None:
    """Raises :class:`KycError` if the backup is damaged, or is not of this lake's ledger."""
    check_health(backup)
    known, theirs = read_lake_identity(lake), read_identity(backup)
    if known is not None and theirs.lake_id not in (None, known.lake_id):
        raise WrongLedger(f"the backup belongs to another lake than {lake.root}: use this lake's backup")


def copy_backup(backup: Ledger, ledger: Ledger) -> dict[str, int]:
    """Copies a checked backup into the ledger, which must be empty. Returns the rows of each table."""
    return _copy(backup, ledger)


@dataclass(frozen=True, slots=True)
class CarriedOver:
    """What a restored ledger has from the ledger that it replaces, beyond its backup."""

    entries: int = 0
    """Entries of the audit trail."""
    legal_holds: int = 0
    """All of them: those of the backup may have been lifted."""
    vendor_deletions: int = 0
    """All of them: those of the backup may have been confirmed since."""
    tombstones: int = 0
    """Of erasures made since the backup: unfinished again, because the backup brought the data back."""
    abandoned: int = 0
    """Submissions that somebody gave up since the backup, and that are not to be sent."""
    needs_rekey: bool = False
    """Whether the backup has pseudonyms of an earlier key than the ledger that it replaces."""


def carry_over(lake: Lake, former: Ledger, ledger: Ledger) -> CarriedOver:
    """Copies what people did since the backup from the ledger that it replaces.

    That is the audit trail, legal holds, the register of vendor deletions, the tombstones and what was
    abandoned; calls and outcomes come from the lake, which has completed the ledger before, and from DeepXL's
    history. Raises :class:`KycError`, having changed nothing, if
    `former` is damaged or is not a later state of this lake's restored ledger.
    """
    check_health(former)
    known, theirs = read_lake_identity(lake), read_identity(former)
    if known is not None and theirs.lake_id != known.lake_id:
        raise KycError(f"it belongs to another lake than {lake.root}")
    with former.read() as reading, ledger.write() as writing:
        head = newest_entry(writing)
        same = select(audit.c.hash).where(audit.c.number == head.number)
        if head.number and reading.execute(same).scalar() != head.hash:
            raise KycError("it is not a later state of the restored ledger")
        columns = erasures.c.name, erasures.c.pseudonym
        before = {tuple(row) for row in writing.execute(select(*columns))}
        rows = {
            audit: _rows(reading, audit, audit.c.number > head.number),
            legal_holds: _rows(reading, legal_holds),
            vendor_deletions: _rows(reading, vendor_deletions),
            erasures: [
                row | {"finished_at": None}
                for row in _rows(reading, erasures)
                if (row["name"], row["pseudonym"]) not in before
            ],
        }
        for table in (legal_holds, vendor_deletions):
            writing.execute(delete(table))
        for table, carried in rows.items():
            if carried:
                writing.execute(insert(table), carried)
        abandoned = 0
        for part in reading.execute(_ABANDONED).scalars().partitions(_ROWS):
            among = update(submissions).where(submissions.c.submission_id.in_(part), is_undecided)
            abandoned += writing.execute(among.values(decision=Decision.ABANDON, updated_at=now())).rowcount
        mine = lock_identity(writing).pseudonym_key_id
        if mine is None or not before:  # the backup has no pseudonyms of its own
            mine = theirs.pseudonym_key_id
            writing.execute(update(identity).values(pseudonym_key_id=mine))
    return CarriedOver(
        entries=len(rows[audit]),
        legal_holds=len(rows[legal_holds]),
        vendor_deletions=len(rows[vendor_deletions]),
        tombstones=len(rows[erasures]),
        abandoned=abandoned,
        needs_rekey=mine != theirs.pseudonym_key_id,
    )


_ABANDONED: Final = select(submissions.c.submission_id).where(
    submissions.c.state == State.UNCERTAIN, submissions.c.decision == Decision.ABANDON
)


def _rows(connection: Connection, table: Table, *which: ColumnElement[bool]) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in connection.execute(select(table).where(*which))]


def complete_from_lake(lake: Lake, ledger: Ledger) -> int:
    """Adds the outcomes and calls that only the lake knows; returns how many submissions got an outcome.

    A day that a run left unfinished loses its decisions `retry`: the lake does not tell whether that run has
    sent these submissions again, and one decision allows one call.
    """
    added = 0
    for date in lake.dates(VERIFICATION_RESPONSES):
        for batch in lake.batches(VERIFICATION_RESPONSES, date, batch_size=_ROWS):
            added += _complete(ledger, date, batch)
        if lake.metadata(VERIFICATION_RESPONSES, date).get(STATE_KEY) == ResponsesState.DISPATCHING:
            with ledger.write() as connection:
                connection.execute(
                    update(submissions)
                    .where(
                        submissions.c.partition_date == date,
                        submissions.c.state == State.UNCERTAIN,
                        submissions.c.decision == Decision.RETRY,
                    )
                    .values(decision=None, updated_at=now())
                )
    return added


def declare_restored(lake: Lake, ledger: Ledger) -> None:
    """Declares this the lake's ledger. Runs then look up what they would send for any day up to today.

    It gets a new id, so that nobody uses the ledger that it replaces by mistake.
    """
    check_health(ledger)
    check_outcomes(lake, ledger, lake.dates(VERIFICATION_RESPONSES))
    with ledger.write() as connection:
        mine = lock_identity(connection)
        known = read_lake_identity(lake)
        lake_id = known.lake_id if known else mine.lake_id or secrets.token_hex(16)
        new = LakeIdentity(
            lake_id, secrets.token_hex(16), max(mine.generation, known.generation if known else 0) + 1
        )
        connection.execute(
            update(identity).values(
                ledger_id=new.ledger_id,
                lake_id=new.lake_id,
                generation=new.generation,
                restored_at=max(ledger.now(connection), _newest(lake, connection)),
                moved_to=None,
            )
        )
        recount(connection)  # the lake may have added calls
        forget_versions(connection)  # and accepted ids
        # Before the commit: if this fails, the ledger is not declared restored.
        write_lake_identity(lake, new)
    ledger.generation = new.generation


def _newest(lake: Lake, connection: Connection) -> int:
    """The newest moment that ledger and lake know: the clock may be behind, as on a machine just set up."""
    newest_call = connection.execute(select(func.max(attempts.c.started_at))).scalar() or 0
    newest_day = max(lake.dates(SUBMISSIONS), default=None)
    if newest_day is None:
        return newest_call
    return max(newest_call, to_microseconds(datetime.fromisoformat(newest_day).replace(tzinfo=UTC)))


def bind_again(lake: Lake, ledger: Ledger) -> None:
    """Binds a lake that lost its id, or was rebuilt, to a ledger that knows all its outcomes."""
    check_health(ledger)
    check_outcomes(lake, ledger, lake.dates(VERIFICATION_RESPONSES))
    with ledger.write() as connection:
        mine = lock_identity(connection)
        if read_lake_identity(lake) is not None:
            return
        new = LakeIdentity(secrets.token_hex(16), mine.ledger_id, mine.generation)
        write_lake_identity(lake, new)
        forget_versions(connection)
        connection.execute(update(identity).values(lake_id=new.lake_id))


def count_states(ledger: Ledger) -> dict[State, int]:
    """Submissions by state."""
    query = select(submissions.c.state, func.count()).group_by(submissions.c.state)
    with ledger.read() as connection:
        return dict(connection.execute(query.order_by(submissions.c.state)).tuples().all())


def check_file(ledger: Ledger) -> None:
    """Checks a SQLite file thoroughly, indexes included. Raises :class:`WrongLedger`."""
    check_health(ledger)
    if ledger.file is None:
        return
    with ledger.upkeep(ledger.file) as connection:
        try:
            sqlite.check_structure(connection, "integrity_check")
        except sqlite.Damaged as error:
            raise WrongLedger(
                f"the ledger {ledger.name} is damaged ({error}): restore the newest backup"
            ) from None


def check_idle(ledger: Ledger, connection: Connection) -> None:
    """Raises :class:`KycError`, which names the run, if one is active."""
    time = ledger.now(connection)
    for row in connection.execute(select(leases).where(leases.c.expires_at > time)):
        holder = ProcessIdentity(row.machine, row.host, row.pid, row.pid_started)
        if not holder.is_surely_dead():
            raise KycError(
                f"run {row.run_id} (process {row.pid} on {row.host}) uses the ledger: stop the daemon, let "
                "the run end, and try again"
            )


def _copy(source: Ledger, target: Ledger) -> dict[str, int]:
    with target.write() as writing:  # any error rolls the copy back
        if any(writing.execute(select(each).limit(1)).first() for each in (submissions, audit)):
            raise UsageError(f"the ledger {target.name} is not empty: nothing was copied")
        for table in reversed(_COPIED):
            writing.execute(delete(table))
        with source.read() as reading:
            for table in _COPIED:
                rows = reading.execution_options(yield_per=_ROWS).execute(select(table))
                for part in rows.partitions():
                    writing.execute(insert(table), [dict(row._mapping) for row in part])
            before = _digests(reading)
        if target.file is None:  # copying ids does not advance PostgreSQL's sequence
            writing.execute(
                text(
                    "SELECT setval(pg_get_serial_sequence('decisions', 'id'), "
                    "(SELECT coalesce(max(id), 0) + 1 FROM decisions), false)"
                )
            )
        after = _digests(writing)
        if before != after:
            wrong = ", ".join(name for name in before if before[name] != after[name])
            raise KycError(f"the copy differs in {wrong}: nothing was copied")
        with source.read() as reading:  # another command may have changed it meanwhile
            if _digests(reading) != before:
                raise KycError("the ledger changed while it was copied: stop what uses it, and try again")
    return {name: rows for name, (rows, _) in after.items()}


def _digests(connection: Connection) -> dict[str, tuple[int, int]]:
    """The number of rows of each table, and a digest that does not depend on their order."""
    return {table.name: _digest(connection, table) for table in _COPIED}


def _digest(connection: Connection, table: Table) -> tuple[int, int]:
    count = total = 0
    for row in connection.execution_options(yield_per=_ROWS).execute(select(table)):
        count += 1
        digest = hashlib.blake2b(repr(tuple(row)).encode(errors="surrogatepass"), digest_size=16).digest()
        total = (total + int.from_bytes(digest, "big")) % (1 << 128)
    return count, total


def _complete(ledger: Ledger, date: str, batch: pa.RecordBatch) -> int:
    rows = [
        row for row in _plain(batch).to_pylist() if row["outcome"] not in (None, Outcome.NOT_ATTEMPTED.value)
    ]
    known = read_responses(ledger, [row["submission_id"] for row in rows])
    added = 0
    with ledger.write() as connection:
        for row in rows:
            state = State(row["outcome"]) if row["outcome"] in set(State) else State.UNCERTAIN
            values = _columns(row, date, state)
            if row["submission_id"] not in known:
                connection.execute(insert(submissions).values(values))
                connection.execute(insert(attempts), _attempts(row))
                added += 1
                continue
            entry, counted = known[row["submission_id"]]
            _add_calls(connection, row, counted)
            if _is_newer(row, state, entry, counted["attempts"]):
                this = update(submissions).where(submissions.c.submission_id == entry.submission_id)
                if entry.state in _SETTLED and state is not State.COMPLETED:  # it was reopened since
                    connection.execute(this.values(state=State.UNCERTAIN, decision=Decision.RETRY))
                connection.execute(this.values(values))
                added += 1
    return added


def _is_newer(row: dict[str, Any], state: State, entry: Entry, calls: int) -> bool:
    """Whether the lake's row, which has this state, is newer than the ledger's entry with so many calls.

    The one that knows more calls is newer. Without another call, a look-up or a judgement may have settled
    the submission since, or an operator may have abandoned it.
    """
    if state is State.COMPLETED or entry.state is State.COMPLETED:
        return entry.state is not State.COMPLETED
    if state is State.FAILED:
        return False  # the entry allows no more than this does
    if row["attempts"] != calls:
        return bool(row["attempts"] > calls)
    if entry.state is State.UNCERTAIN:  # if the row is final, the entry was reopened
        return row["outcome"] == Outcome.ABANDONED and entry.decision is None
    return entry.state not in _SETTLED


def _add_calls(connection: Connection, row: dict[str, Any], counted: dict[str, Any]) -> None:
    """Adds the calls that only the lake knows: they cost money, and belong to a day's budget."""
    calls = max(0, row["attempts"] - counted["attempts"])
    billable = max(0, row["billable_calls"] - counted["billable_calls"])
    if not (calls or billable):
        return
    of_submission = attempts.c.submission_id == row["submission_id"]
    newest = connection.execute(select(func.max(attempts.c.number)).where(of_submission)).scalar() or 0
    if billable > calls:  # a look-up showed that the newest one was processed
        connection.execute(
            update(attempts).where(of_submission, attempts.c.number == newest).values(billable=1)
        )
    if calls:
        missing = _attempts(row | {"attempts": calls, "billable_calls": min(calls, billable)})
        connection.execute(insert(attempts), [each | {"number": each["number"] + newest} for each in missing])


def _plain(batch: pa.RecordBatch) -> pa.Table:
    """The rows with times as microseconds, as the ledger stores them."""
    table = pa.table(batch)
    for name in ("requested_at", "responded_at"):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table[name].cast(pa.timestamp("us", "UTC")).cast(pa.int64()))
    return table


def _columns(row: dict[str, Any], date: str, state: State) -> dict[str, Any]:
    return {
        "submission_id": row["submission_id"],
        "partition_date": date,
        "content_sha256": row["content_sha256"],
        "state": state,
        "decision": Decision.ABANDON if row["outcome"] == Outcome.ABANDONED else None,
        "updated_at": now(),
    } | {name: row[name] for name in RESPONSE_COLUMNS}


def _attempts(row: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """The calls as the lake counts them. A submission without any was claimed, but not sent."""
    time = row["requested_at"] or now()
    calls = max(row["attempts"], row["billable_calls"])
    return [
        {
            "submission_id": row["submission_id"],
            "number": number,
            "token": secrets.token_hex(16),
            "run_id": "restored",
            "started_at": time,
            "ended_at": time,
            "result": None if calls else AttemptResult.NOT_SENT,
            "billable": int(number <= row["billable_calls"]),
            "sent": row["sent"],
        }
        for number in range(1, max(calls, 1) + 1)
    ]
