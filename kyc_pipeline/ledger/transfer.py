"""Moves a ledger's content to another URL, or restores it from a backup and the lake."""

import contextlib
import glob
import hashlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.lake.atomic import move_into_place
from kyc_pipeline.lake.identity import LakeIdentity, note_generation, read_lake_identity, write_lake_identity
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import STATE_KEY, SUBMISSIONS, VERIFICATION_RESPONSES, ResponsesState
from kyc_pipeline.ledger import sqlite
from kyc_pipeline.ledger.audit import newest_entry, take_turn
from kyc_pipeline.ledger.database import Ledger, LedgerError, WrongLedger
from kyc_pipeline.ledger.day_budget import recount
from kyc_pipeline.ledger.identity import (
    check_bond,
    check_health,
    check_outcomes,
    lock_identity,
    read_identity,
)
from kyc_pipeline.ledger.models import AttemptResult, Decision, State, outcome_of
from kyc_pipeline.ledger.owners import forget_versions
from kyc_pipeline.ledger.process import ProcessIdentity
from kyc_pipeline.ledger.queries import RESPONSE_COLUMNS, call_count
from kyc_pipeline.ledger.schema import (
    ERASED_CONTENT,
    attempts,
    audit,
    decisions,
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
_ASIDE: Final = "replaced-"
"""How the suffix of a file that was set aside begins."""
_COPIED: Final = [table for table in metadata.sorted_tables if table is not leases]
"""All but the leases: they belong to processes, and none is held while a ledger is copied."""
_SETTLED: Final = frozenset(State(outcome) for outcome in SETTLED)


def move(lake: Lake, source: Ledger, target: Ledger) -> dict[str, int]:
    """Copies everything to `target`, which must be empty, and puts `source` out of use.

    Returns the rows of each table, once counts and digests agree. Raises :class:`KycError` if a run is
    active, and if anything differs; the source then stays in use. If the last commit fails, both may be out
    of use: `declare_restored` then puts the target into use.
    """
    check_bond(lake, source)
    check_health(source)
    check_health(target)
    with source.write() as connection:
        check_idle(source, connection)
        # From now on no run can claim, and no command can act. Any other change makes the digests differ.
        connection.execute(update(identity).values(moved_to=target.name))
        take_turn(source, connection)  # last, as in a command: the reverse can deadlock on PostgreSQL
    try:
        rows = _copy(source, target)
    except BaseException:
        with source.write() as connection:
            connection.execute(update(identity).values(moved_to=None))
        raise
    # If this commit's response is lost, nobody knows which one is in use: the source never is again.
    with target.write() as connection:
        connection.execute(update(identity).values(moved_to=None, generation=identity.c.generation + 1))
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
    """Renames the SQLite file and its side files, durably, and returns the file's new name.

    Without a file, returns the newest one set aside, as after a restore that was killed; or None.
    """
    if ledger.file is None:
        return None
    ledger.close()
    mark = f"{_ASIDE}{secrets.token_hex(4)}"
    # The file itself comes last: a power cut leaves no side file beside the new ledger that takes its place.
    for side in ("-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            move_into_place(f"{ledger.file}{side}", f"{ledger.file}.{mark}{side}")
    if not ledger.file.exists():
        asides = ledger.file.parent.glob(f"{glob.escape(ledger.file.name)}.{_ASIDE}{'[0-9a-f]' * 8}")
        return max(asides, key=lambda path: path.stat().st_mtime_ns, default=None)
    aside = ledger.file.with_name(f"{ledger.file.name}.{mark}")
    move_into_place(ledger.file, aside)
    return aside


@contextlib.contextmanager
def draft_beside(ledger: Ledger) -> Iterator[Ledger]:
    """An empty ledger beside the SQLite file, for `put_into_place`. What a killed restore left is removed."""
    assert ledger.file is not None
    folder = ledger.file.with_name(f"{ledger.file.name}.draft")
    _remove_folder(folder)
    try:
        with Ledger(f"sqlite:///{folder / 'ledger.sqlite'}") as draft:
            yield draft
    finally:
        _remove_folder(folder)


def put_into_place(draft: Ledger, ledger: Ledger) -> None:
    """Renames the draft, which is complete, to the ledger's file, durably."""
    assert draft.file is not None
    assert ledger.file is not None
    draft.close()
    move_into_place(draft.file, ledger.file)


def _remove_folder(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


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
    """Submissions that somebody abandoned since the backup."""
    needs_rekey: bool = False
    """Whether the backup has pseudonyms of an earlier key than the ledger that it replaces."""


def carry_over(lake: Lake, former: Ledger, ledger: Ledger) -> CarriedOver:
    """Copies what people did since the backup from the ledger that it replaces.

    That is the audit trail, legal holds, the register of vendor deletions, the tombstones and what was
    abandoned. Calls and outcomes come from the lake, by `complete_from_lake` before this, and from DeepXL's
    history. Raises :class:`KycError`, having changed nothing, if `former` is damaged or is not a later state
    of this lake's restored ledger.
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
            ids = {"ids": list(part)}
            abandoned += writing.execute(_ABANDON, ids | {"updated_at": now()}).rowcount
            unknown = set(part).difference(writing.execute(_THESE, ids).scalars())  # to the lake, too
            abandoned += len(unknown)
            for table in (submissions, attempts):
                if carried := _rows(reading, table, table.c.submission_id.in_(unknown)):
                    writing.execute(insert(table), carried)
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
    submissions.c.state == State.UNCERTAIN,
    submissions.c.decision == Decision.ABANDON,
    submissions.c.content_sha256 != ERASED_CONTENT,
)
_THESE: Final = select(submissions.c.submission_id).where(
    submissions.c.submission_id.in_(bindparam("ids", expanding=True))
)
_ABANDON: Final = (
    update(submissions)
    .where(
        submissions.c.submission_id.in_(bindparam("ids", expanding=True)),
        submissions.c.state.not_in(_SETTLED),
        submissions.c.decision.is_distinct_from(Decision.ABANDON),
    )
    .values(state=State.UNCERTAIN, decision=Decision.ABANDON)
)
"""Whatever the backup says of it, such as `failed` or `retry`, unless it is settled."""


def _rows(connection: Connection, table: Table, *which: ColumnElement[bool]) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in connection.execute(select(table).where(*which))]


def complete_from_lake(lake: Lake, ledger: Ledger) -> int:
    """Adds the outcomes and calls that only the lake knows; returns how many submissions got an outcome.

    A day that a run left unfinished loses its decisions `retry`: the lake does not tell whether that run has
    sent these submissions again, and one decision allows one call.
    """
    added = 0
    with ledger.read() as connection:
        once_reopened = frozenset(connection.execute(_ONCE_REOPENED).scalars())
    for date in lake.dates(VERIFICATION_RESPONSES):
        for batch in lake.batches(VERIFICATION_RESPONSES, date, batch_size=_ROWS):
            added += _complete(ledger, date, batch, once_reopened)
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


def _complete(ledger: Ledger, date: str, batch: pa.RecordBatch, once_reopened: frozenset[str]) -> int:
    """Completes the ledger from rows of the lake; returns how many submissions got an outcome."""
    table = _plain(batch.filter(pc.field("outcome") != Outcome.NOT_ATTEMPTED.value))
    taken, reopened, billed, missing = [], [], [], []
    with ledger.write() as connection:
        found = connection.execute(_KNOWN, {"ids": table["submission_id"].to_pylist()})
        known = {row.submission_id: row for row in found}
        for index, row in enumerate(table.select(_WITHOUT_TEXTS).to_pylist()):
            key, entry = row["submission_id"], known.get(row["submission_id"])
            if entry is None:
                taken.append(index)
                missing += _attempts(row)
                continue
            is_newer = _is_newer(row, entry, was_reopened=key in once_reopened)
            if is_newer:
                taken.append(index)
                if entry.state in _SETTLED and row["outcome"] != Outcome.COMPLETED:
                    reopened.append({"key": key})
            calls = max(0, row["attempts"] - entry.attempts)
            billable = row["billable_calls"] - entry.billable_calls
            if billable > calls:  # a look-up showed that the newest call was processed
                billed.append({"key": key, "of_number": entry.newest, "billable": 1})
            elif billable < 0 and is_newer:  # the result of the newest call was not billable
                billed.append({"key": key, "of_number": entry.newest, "billable": 0})
            # These calls cost money, and belong to a day's budget.
            if calls:
                counts = {"attempts": calls, "billable_calls": min(calls, max(0, billable))}
                missing += _attempts(row | counts, after=entry.newest)
        rows = [_columns(row, date) for row in table.take(pa.array(taken, pa.int64())).to_pylist()]
        changed = [{"key": row.pop("submission_id"), **row} for row in rows if row["submission_id"] in known]
        for statement, parameters in (
            (insert(submissions), [row for row in rows if "submission_id" in row]),
            (_REOPEN, reopened),
            (_CHANGE, changed),
            (_BILL, billed),
            (insert(attempts), missing),
        ):
            if parameters:
                connection.execute(statement, parameters)
    return len(taken)


_WITHOUT_TEXTS: Final = ["submission_id", "outcome", "attempts", "billable_calls", "requested_at", "sent"]
_KNOWN: Final = (
    select(
        submissions.c.submission_id,
        submissions.c.state,
        submissions.c.decision,
        call_count.label("attempts"),
        func.coalesce(func.sum(attempts.c.billable), 0).label("billable_calls"),
        func.coalesce(func.max(attempts.c.number), 0).label("newest"),
    )
    .outerjoin(attempts, attempts.c.submission_id == submissions.c.submission_id)
    .where(submissions.c.submission_id.in_(bindparam("ids", expanding=True)))
    .group_by(submissions.c.submission_id)
)
_ONCE_REOPENED: Final = select(decisions.c.submission_id).where(decisions.c.decision == Decision.REOPEN)
_CHANGE: Final = update(submissions).where(submissions.c.submission_id == bindparam("key"))
_REOPEN: Final = _CHANGE.values(state=State.UNCERTAIN, decision=Decision.RETRY)
"""Without it, the database lets no final outcome change."""
_BILL: Final = update(attempts).where(
    attempts.c.submission_id == bindparam("key"), attempts.c.number == bindparam("of_number")
)


def _is_newer(row: Mapping[str, Any], entry: Row[Any], *, was_reopened: bool) -> bool:
    """Whether the lake's row is newer than the ledger's entry: the one that knows more calls is.

    If both know as many, the order of outcomes tells. If that is unclear, the one that allows less counts.
    """
    outcome = Outcome(row["outcome"])
    if outcome is Outcome.COMPLETED or entry.state is State.COMPLETED:
        return entry.state is not State.COMPLETED
    if entry.state is State.UNCERTAIN and outcome is Outcome.FAILED:
        return False  # only a late result leads there
    if row["attempts"] != entry.attempts or entry.state is State.CLAIMED:
        return bool(row["attempts"] >= entry.attempts)
    if entry.state is State.UNCERTAIN and outcome in SETTLED and was_reopened:
        return False  # the outcome is perhaps the one that was reopened
    return _ORDER[outcome] > _ORDER[outcome_of(entry.state, entry.decision)]


_ORDER: Final = {
    Outcome.FAILED: 0,
    Outcome.UNCERTAIN: 1,
    Outcome.ABANDONED: 2,
    Outcome.REFUSED: 3,
    Outcome.QUARANTINED: 3,
}
"""In which order a submission can get its outcomes without another call."""


def _plain(batch: pa.RecordBatch) -> pa.Table:
    """The rows with times as microseconds, as the ledger stores them."""
    table = pa.table(batch)
    for name in ("requested_at", "responded_at"):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table[name].cast(pa.timestamp("us", "UTC")).cast(pa.int64()))
    return table


def _columns(row: Mapping[str, Any], date: str) -> dict[str, Any]:
    outcome, decision = Outcome(row["outcome"]), None
    if outcome is Outcome.ABANDONED:
        state, decision = State.UNCERTAIN, Decision.ABANDON
    elif outcome is Outcome.FAILED and row["attempts"]:
        state = State.TURNED_AWAY  # the lake does not tell; a failed one is not looked up on later days
    else:
        state = State(outcome.value)
    return {
        "submission_id": row["submission_id"],
        "partition_date": date,
        "content_sha256": row["content_sha256"],
        "state": state,
        "decision": decision,
        "updated_at": now(),
    } | {name: row[name] for name in RESPONSE_COLUMNS}


def _attempts(row: Mapping[str, Any], after: int = 0) -> list[dict[str, Any]]:
    """The calls that the lake counts, as attempts after number `after`.

    A submission without any was claimed, but not sent.
    """
    time = row["requested_at"] or now()
    calls = max(row["attempts"], row["billable_calls"])
    return [
        {
            "submission_id": row["submission_id"],
            "number": after + number,
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
