"""Upkeep of the ledger's file: free pages go back to the disk."""

import time
from pathlib import Path
from typing import Final

from kyc_pipeline.ledger.database import Ledger, LedgerError

_PAGES_PER_STEP: Final = 2000
"""Given back in one transaction: 8 MB, for which a run that writes hardly waits."""
_PAUSE_SECONDS: Final = 0.1
"""Between two of them: who waits for SQLite's lock looks for it no more often than that."""


def vacuum(ledger: Ledger) -> str:
    """Cuts the free pages off a SQLite ledger, a few at a time; what was done, in words.

    Runs may be at work on it. PostgreSQL does this by itself.
    """
    file = ledger.file
    if file is None:
        return "the ledger is on PostgreSQL, whose autovacuum does this"
    if not ledger.exists():
        return "there is no ledger yet"
    size = file.stat().st_size
    try:
        pages, free = _give_back(ledger, file)
    except LedgerError as error:
        return f"{error}: left for the next time"
    return f"the ledger had {size:,} bytes, {free} of {pages} pages free, and has {file.stat().st_size:,}"


def _give_back(ledger: Ledger, file: Path) -> tuple[int, int]:
    """Pages and free pages, as they were before."""
    with ledger.upkeep(file) as connection:
        [pages], [free] = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count")
        )
        for _ in range(0, free, _PAGES_PER_STEP):
            # As a script: of a statement without columns the driver runs one step, which is one page.
            connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_PER_STEP})")
            time.sleep(_PAUSE_SECONDS)
        connection.execute("PRAGMA optimize")
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    return pages, free
