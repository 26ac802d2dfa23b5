"""Frees the space of rows that left the ledger, or got shorter."""

import time
from pathlib import Path
from typing import Final

from sqlalchemy import text

from kyc_pipeline.ledger.database import Ledger, LedgerError

_PAGES_PER_STEP: Final = 2000
"""Returned per transaction: 8 MB, so a run that writes waits only briefly."""
_PAUSE_SECONDS: Final = 0.1
"""Between transactions: a process that waits for SQLite's lock polls it about this often."""


def vacuum(ledger: Ledger) -> str:
    """Frees space; the value is a message about the result. Safe while runs use the ledger.

    SQLite returns its free pages to the file system, a few at a time. PostgreSQL keeps the space for new
    rows; its autovacuum would wait until a fifth of a table has changed, in a ledger of years for months.
    """
    file = ledger.file
    if not ledger.exists():
        return "there is no ledger yet"
    if file is None:
        with ledger.read() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(
                text("VACUUM submissions, attempts")
            )
        return "freed space for new rows in the ledger's tables"
    size = file.stat().st_size
    try:
        pages, free = _free_pages(ledger, file)
    except LedgerError as error:
        return f"{error}: skipped until next time"
    return f"the ledger had {size:,} bytes ({free} of {pages} pages free) and now has {file.stat().st_size:,}"


def _free_pages(ledger: Ledger, file: Path) -> tuple[int, int]:
    """Vacuums incrementally; returns how many pages there were before, and how many were free."""
    with ledger.upkeep(file) as connection:
        [pages], [free] = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count")
        )
        for _ in range(0, free, _PAGES_PER_STEP):
            # `execute` would step the statement once, which frees only one page.
            connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_PER_STEP})")
            time.sleep(_PAUSE_SECONDS)
        connection.execute("PRAGMA optimize")
    return pages, free
