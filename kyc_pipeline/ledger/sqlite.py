"""The ledger as a SQLite file: one file, whose commits survive a power cut.

It uses a rollback journal (`TRUNCATE`) with `synchronous=EXTRA`, never a WAL:

* SQLite before 3.51.3 (except 3.44.6 and 3.50.7) can lose commits in WAL mode (the "WAL-reset bug"), and
  Python loads the library that the system has. Network folders cannot run WAL at all.
* Between commits the ledger is one file. There is no `-wal` that a copy can lack, or that can belong to an
  older file and be applied to a newer one.

The price is three more flushes to disk in a commit, which the calls in flight share, and readers that block
commits while they read: keep reads short.
"""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any, Final, TypeAlias

from filelock import FileLock

from kyc_pipeline.lake.atomic import make_folder
from kyc_pipeline.ledger import hot_journal

FileId: TypeAlias = tuple[int, int]
"""Device and inode: they differ if another file has taken the path."""

_MAGIC: Final = b"SQLite format 3\0"
_WAL: Final = "wal"


class ForeignLog(Exception):
    """A `-wal` file lies beside a database that is not in WAL mode, or the journal of another database."""


class Damaged(Exception):
    """The file's structure is broken."""


def file_id(path: Path) -> FileId | None:
    """The identity of the file at `path`; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def configure(connection: sqlite3.Connection) -> None:
    """Sets up a new connection; `prepare` must have put the file into rollback mode."""
    # Disables the driver's implicit BEGIN: the engine chooses the transaction type.
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=EXTRA")
    connection.execute("PRAGMA foreign_keys=ON")
    if _journal_mode(connection) != _WAL:
        connection.execute("PRAGMA journal_mode=TRUNCATE")


def has_log(path: Path) -> bool:
    """Whether a `-wal` with content lies beside the file, which an older version may have left.

    Raises :class:`ForeignLog` if it, or a journal, is not the file's own: SQLite would apply it on the first
    read.
    """
    path = path.resolve()  # they lie beside the file that a link leads to
    if hot_journal.is_foreign(path):
        raise ForeignLog(f"{path.name}-journal")
    log = Path(f"{path}-wal")
    if not (log.exists() and log.stat().st_size):
        return False
    # Reading the header drops this process's locks on the file, but with a log there it has none.
    if not uses_wal(path):
        raise ForeignLog(log.name)
    return True


def prepare(path: Path, busy_timeout: float) -> None:
    """Creates the file (mode 0600) if it is missing, and ends WAL mode, in which older versions left it.

    Raises :class:`ForeignLog`, :class:`Damaged`, or :class:`sqlite3.Error` if an older version has it open.
    """
    was_in_use = has_log(path)
    if path.exists() and path.stat().st_size:
        with contextlib.closing(sqlite3.connect(path, timeout=busy_timeout)) as connection:
            if _journal_mode(connection) != _WAL:
                return
    make_folder(path.parent)
    with (
        FileLock(f"{path}.lock", mode=0o600),
        contextlib.closing(_open(path, busy_timeout)) as connection,
    ):
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # `upkeep.py` returns free pages
        if was_in_use:
            check_structure(connection, "integrity_check")
        connection.execute("PRAGMA journal_mode=TRUNCATE")


def check_structure(connection: sqlite3.Connection, pragma: str = "quick_check") -> None:
    """Raises :class:`Damaged` if SQLite finds the file's structure broken. Reads the whole file."""
    try:
        (found,) = connection.execute(f"PRAGMA {pragma}(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise Damaged(str(error)) from None
    if found != "ok":
        raise Damaged(str(found).splitlines()[0])


def _open(path: Path, busy_timeout: float) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)


def _journal_mode(connection: sqlite3.Connection) -> Any:
    return connection.execute("PRAGMA journal_mode").fetchone()[0]


def uses_wal(path: Path) -> bool:
    """Whether the file's header says that it has a WAL.

    Closing the file drops this process's locks on it: only for a file that it has not open.
    """
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except FileNotFoundError:
        return False
    return header.startswith(_MAGIC) and header[18:20] == b"\2\2"
