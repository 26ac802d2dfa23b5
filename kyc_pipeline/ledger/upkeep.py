"""Maintenance of a SQLite ledger: returns free pages to the file system."""

import time
from pathlib import Path
from typing import Final

from kyc_pipeline.ledger.database import Ledger, LedgerError

_PAGES_PER_STEP: Final = 2000
"""Returned per transaction: 8 MB, so a run that writes waits only briefly."""
_PAUSE_SECONDS: Final = 0.1
"""Between transactions: a process that waits for SQLite's lock polls it about this often."""


def vacuum(ledger: Ledger) -> str:
    """Shrinks a SQLite ledger by its free pages, a few at a time; returns a message about what was done.

    Safe while runs use the ledger. PostgreSQL needs none of it.
    """
    file = ledger.file
    if file is None:
        return "the ledger is on PostgreSQL, whose autovacuum does this"
    if not ledger.exists():
        return "there is no ledger yet"
    size = file.stat().st_size
    try:
        pages, free = _free_pages(ledger, file)
    except LedgerError as error:
        return f"{error}: left for the next time"
    return f"the ledger had {size:,} bytes, {free} of {pages} pages free, and has {file.stat().st_size:,}"


def _free_pages(ledger: Ledger, file: Path) -> tuple[int, int]:
    """Vacuums incrementally; returns the pages and the free pages there were before."""
    with ledger.upkeep(file) as connection:
        [pages], [free] = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count")
        )
        for _ in range(0, free, _PAGES_PER_STEP):
            # As a script: the driver runs one step of a statement without columns, which frees one page.
            connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_PER_STEP})")
            time.sleep(_PAUSE_SECONDS)
        connection.execute("PRAGMA optimize")
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    return pages, free
