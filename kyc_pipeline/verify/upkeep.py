"""Upkeep of the ledger's file: free pages go back to the disk."""

from typing import Final

from kyc_pipeline.verify.ledger import Ledger

_PAGES_PER_STEP: Final = 2000
"""Given back in one transaction: 8 MB, for which a run that writes hardly waits."""


def vacuum(ledger: Ledger) -> str:
    """Cuts the free pages off a SQLite ledger, a few at a time; what was done, in words.

    Runs may be at work on it. PostgreSQL does this by itself.
    """
    file = ledger.database.file
    if file is None:
        return "the ledger is on PostgreSQL, whose autovacuum does this"
    if not ledger.exists():
        return "there is no ledger yet"
    size = file.stat().st_size
    with ledger.database.upkeep(file) as connection:
        [pages], [free] = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count")
        )
        for _ in range(0, free, _PAGES_PER_STEP):
            # As a script: of a statement without columns the driver runs one step, which is one page.
            connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_PER_STEP})")
        connection.execute("PRAGMA optimize")
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    return f"the ledger had {size:,} bytes, {free} of {pages} pages free, and has {file.stat().st_size:,}"
