"""Whether the rollback journal that a killed process left beside a SQLite file belongs to that file.

SQLite rolls the file back with it on the next use. That is right for the file that the process was writing,
but it would damage another file that has taken its place, such as a backup, and could give an old ledger the
`generation` of the newer one.

A journal has pages as they were before the transaction. Page 1 has the change counter, which each commit
increments. The file that a journal belongs to has the same counter, or one more if its page 1 was written.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_HEADER: Final = struct.Struct(">8sIIIII")
"""Magic, records, nonce, pages of the file before the transaction, bytes of a sector and of a page."""
_ALL: Final = 0xFFFFFFFF
"""Instead of the number of records: all records up to the end of the file."""
_COUNTER_AT: Final = 24
_open_files: Final[dict[tuple[int, int], int]] = {}
"""Never closed: closing a file drops all locks that this process has on it, SQLite's too."""


def is_foreign(database: Path) -> bool:
    """Whether the journal, if there is one with content, certainly belongs to another file.

    Another process may be in the middle of a commit: then the journal is its own.
    """
    path = Path(f"{database}-journal")
    try:
        if not path.stat().st_size:
            return False
        before = _change_counter(database)
        with path.open("rb") as journal:
            pages, counter = _read(journal)
    except FileNotFoundError:
        return False
    if counter is not None:
        return not before - 1 <= counter <= _change_counter(database)
    return pages is not None and pages > _pages(database)


def _change_counter(database: Path) -> int:
    return _number(database, _COUNTER_AT)


def _pages(database: Path) -> int:
    size = _number(database, 16) >> 16
    return database.stat().st_size // (65536 if size == 1 else size or 1)


def _number(database: Path, at: int) -> int:
    found = database.stat()
    key = found.st_dev, found.st_ino
    if key not in _open_files:
        _open_files[key] = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
    return int.from_bytes(os.pread(_open_files[key], 4, at), "big")


def _read(journal: IO[bytes]) -> tuple[int | None, int | None]:
    """The pages of the file before the transaction, and its change counter; None if unknown."""
    pages = None
    for pages, number, page in _records(journal):
        if number == 1:
            return pages, int.from_bytes(page[_COUNTER_AT : _COUNTER_AT + 4], "big")
    return pages, None


def _records(journal: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """For each page in the journal: how many pages the file had, the page's number, and its content."""
    start = 0
    while True:
        journal.seek(start)
        header = journal.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return
        magic, records, _, pages, sector, size = _HEADER.unpack(header)
        if magic != _MAGIC or not (sector and size):
            return
        journal.seek(start + sector)
        while records:
            record = journal.read(4 + size + 4)
            if len(record) < 4 + size + 4:
                return
            yield pages, int.from_bytes(record[:4], "big"), record[4:-4]
            records -= records != _ALL
        start = -(-journal.tell() // sector) * sector
