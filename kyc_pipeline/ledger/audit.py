"""The audit trail: who decided, erased or exported what, when and why.

The database refuses to change or remove an entry. Tampering that circumvents this shows: each entry has a
SHA-256 over itself and the previous hash, and the lake remembers the newest entry, so that missing last
entries show too. Only a copy of the newest hash, kept elsewhere, proves that nobody rewrote the whole trail.

Entries outlive the data of the people they are about, so they name nobody: a subject is the tag's name with
the HMAC of its value, as in a tombstone, and `details` are counts and dates.
"""

import contextlib
import getpass
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Connection, Row, insert, select

from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.identity import read_lake_identity
from kyc_pipeline.lake.root_files import read_record, write_record
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.database import Ledger, take_turns
from kyc_pipeline.ledger.identity import require_in_use
from kyc_pipeline.ledger.schema import audit, storable
from kyc_pipeline.ledger.times import now
from kyc_pipeline.privacy.erased import Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.privacy.spelling import fold

NOTE_FILE: Final = "audit.json"
_NOT_NOTED: Final = (
    "the audit trail has the entry, but {path} cannot be written ({reason}): correct that, and repeat the "
    "command if it removes data"
)
"""An erasure has its first entry before it removes anything, and ends here."""
FIRST: Final = "0" * 64
"""The `previous_hash` of the first entry."""
_LOCK: Final = 0x6B79636175  # "kycau": the key of PostgreSQL's advisory lock
_HASHED: Final = [column for column in audit.c if column.name not in ("previous_hash", "hash")]
_ROWS: Final = 1000

Details: TypeAlias = Mapping[str, int | str | bool | None]


class AuditAction(StrEnum):
    """What was done."""

    RETRY = "held-retry"
    ABANDON = "held-abandon"
    REOPEN = "reopen"
    ERASE = "erase"
    """An erasure began."""
    ERASED = "erased"
    """The erasure ended: nothing is left."""
    VENDOR_DELETION = "vendor-deletion"
    """DeepXL confirmed that it deleted records."""
    EXPORT = "export"
    HOLD = "legal-hold-add"
    LIFT = "legal-hold-remove"
    RETENTION = "retention"
    """A removal by the retention rules began."""
    RETAINED = "retention-ended"
    REKEY = "rekey"
    """The ledger's pseudonyms were made anew with another key; the lake's are next."""
    REKEYED = "rekeyed"
    RESET_LIMITS = "limits-reset"
    RESTORE = "ledger-restore"
    OFFLOAD = "offload"
    """The responses of a day left the ledger: only the lake has them."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who acts, on which host, and why. `request` is the number of the request behind the action."""

    operator: str
    host: str = field(default_factory=socket.gethostname)
    reason: str | None = None
    request: str | None = None


def operator(name: str | None = None) -> str:
    """`name` (`KYC_OPERATOR`), or else the login name of this process."""
    if name:
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.getuid()}"


class Head(NamedTuple):
    """An entry's number and hash."""

    number: int
    hash: str


class AuditTrail:
    """Writes the entries of one author.

    Calls `pseudonymizer`, which may create a key, only for a subject: inside a transaction, so it must not
    write to the ledger.
    """

    def __init__(
        self, ledger: Ledger, lake: Lake, author: Author, pseudonymizer: Callable[[], Pseudonymizer]
    ) -> None:
        self._ledger = ledger
        self._lake = lake
        self._author = author
        self._pseudonymizer = pseudonymizer

    @contextlib.contextmanager
    def noted(self) -> Iterator["AuditTrail"]:
        """Records the newest entry in the lake when the block ends."""
        yield self
        note(self._lake, self._ledger)

    def record(
        self, action: AuditAction, subject: tuple[str, str] | None = None, details: Details | None = None
    ) -> None:
        """Adds one entry, in a transaction of its own. `subject` is a tag's name and value."""
        with self.noted(), self._ledger.write() as connection:
            self.append(connection, action, [subject], details)

    def record_restore(self) -> int | None:
        """Adds an entry for a restored ledger. Returns how many entries it lacks; None if unknown."""
        found, head = problems(self._lake, self._ledger)
        seen = read_note(self._lake)
        lost = max(seen.number - head.number, 0) if seen else 0
        with self._ledger.write() as connection:
            self.append(connection, AuditAction.RESTORE, [None], {"lost": lost, "problems": len(found)})
        note(self._lake, self._ledger, was_restored=True)
        return lost if seen else None

    def append(
        self,
        connection: Connection,
        action: AuditAction,
        subjects: Iterable[tuple[str, str] | None],
        details: Details | None = None,
    ) -> None:
        """Adds an entry for each subject to the transaction of the action, so that both succeed or fail.

        Call it last, because other writers of the trail wait until the transaction ends. Raises
        :class:`UsageError` if the reason or the request names a subject; :class:`WrongLedger` if the ledger
        was moved meanwhile, since the action would be lost.
        """
        take_turn(self._ledger, connection)
        require_in_use(self._ledger, connection)
        head = newest_entry(connection)
        rows = []
        for subject in subjects:
            row = self._row(head.number + 1, action, subject, details or {})
            row |= {"previous_hash": head.hash, "hash": _hash(head.hash, row.values())}
            head = Head(row["number"], row["hash"])
            rows.append(row)
        if rows:
            connection.execute(insert(audit), rows)

    def _row(
        self, number: int, action: AuditAction, subject: tuple[str, str] | None, details: Details
    ) -> dict[str, Any]:
        """The entry, in the order of the table's columns."""
        author = self._author
        if subject is not None:
            require_anonymous(subject[1], author.reason, author.request)
        who = Tombstone.of_tag(self._pseudonymizer(), *subject) if subject else None
        return {
            "number": number,
            "happened_at": now(),
            "operator": storable(author.operator[:255]),
            "host": storable(author.host[:255]),
            "action": action.value,
            "subject_name": storable(who.name) if who else None,
            "subject": who.pseudonym if who else None,
            "key_id": who.key_id if who else None,
            "reason": storable(author.reason) if author.reason else None,
            "request": storable(author.request) if author.request else None,
            "details": json.dumps(details, sort_keys=True),
        }


def take_turn(ledger: Ledger, connection: Connection) -> None:
    """Waits for other writers of the trail, and lets none write until the transaction ends."""
    if ledger.file is None:  # SQLite has one writer at a time
        take_turns(connection, _LOCK)


def read_trail(ledger: Ledger) -> Iterator[Row[Any]]:
    """The entries, oldest first. Does not create a ledger."""
    if not ledger.exists():
        return
    with ledger.read() as connection:
        query = select(audit).order_by(audit.c.number)
        yield from connection.execution_options(yield_per=_ROWS).execute(query)


def problems(lake: Lake, ledger: Ledger, seen: Iterable[str] = ()) -> tuple[list[str], Head]:
    """What is wrong with the trail, one line each, and its newest entry.

    Each hash in `seen`, which somebody kept elsewhere, must be the hash of an entry.
    """
    found: list[str] = []
    head, kept, noted = Head(0, FIRST), set(seen), read_note(lake)
    for row in read_trail(ledger):
        if row.number != head.number + 1:
            found.append(f"{_entries(head.number + 1, row.number - 1)} missing")
        elif row.previous_hash != head.hash:
            found.append(
                f"entry {row.number} does not follow entry {head.number}: one was changed or inserted"
            )
        if row.hash != _hash(row.previous_hash, [getattr(row, column.name) for column in _HASHED]):
            found.append(f"entry {row.number} was changed")
        if noted is not None and row.number == noted.number and row.hash != noted.hash:
            found.append(f"entry {row.number} differs from the one that the lake has seen")
        kept.discard(row.hash)
        head = Head(row.number, row.hash)
    if noted is not None and noted.number > head.number:
        found.append(f"{_entries(head.number + 1, noted.number)} missing, which the lake has seen")
    return found + [f"no entry has the hash {each}" for each in sorted(kept)], head


def read_note(lake: Lake) -> Head | None:
    """The newest entry that the lake has seen; None if it has seen none. Raises :class:`KycError`."""
    return read_record(lake, NOTE_FILE, Head, "restore it from a backup")


def note(lake: Lake, ledger: Ledger, *, was_restored: bool = False) -> None:
    """Records the newest entry in the lake, if the lake is bound to a ledger.

    If the entry that the lake remembers is gone, the lake keeps it, so that :func:`problems` reports the
    loss; unless the ledger was restored, since the trail has an entry for that.
    """
    if not ledger.exists() or read_lake_identity(lake) is None:
        return
    known = read_note(lake)
    with ledger.read() as connection:
        head = newest_entry(connection)
        seen = select(audit.c.hash).where(audit.c.number == (known.number if known else 0))
        is_gone = known is not None and connection.execute(seen).scalar() != known.hash
    if is_gone and not was_restored:
        return
    write_record(lake, NOTE_FILE, head, _NOT_NOTED)


def newest_entry(connection: Connection) -> Head:
    """The newest entry; number 0 and the hash `FIRST` if there is none."""
    query = select(audit.c.number, audit.c.hash).order_by(audit.c.number.desc()).limit(1)
    newest = connection.execute(query).first()
    return Head(*newest) if newest else Head(0, FIRST)


def _hash(previous: str, values: Iterable[object]) -> str:
    """SHA-256 (hex) of a JSON array in ASCII: the previous hash and the entry's values."""
    entry = json.dumps([previous, *values], separators=(",", ":"))
    return hashlib.sha256(entry.encode("ascii")).hexdigest()


def _entries(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"


def require_anonymous(value: str, *texts: str | None) -> None:
    """Raises :class:`UsageError` if one of `texts`, a reason or a request, contains the subject's value."""
    named = re.compile(rf"(?<!\w){re.escape(fold(value))}(?!\w)")
    if any(text and named.search(fold(text)) for text in texts):
        raise UsageError(
            "--reason and --request must not name the person or the submission: the audit trail keeps them, "
            "even after an erasure"
        )
