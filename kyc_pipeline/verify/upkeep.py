"""Upkeep of the ledger's file: free pages go back to the disk."""

import contextlib
import sqlite3
from typing import Final

from sqlalchemy import func, select

from kyc_pipeline.verify.ledger import Ledger
from kyc_pipeline.verify.schema import leases

FREE_SHARE: Final = 0.05
"""Share of free pages from which rewriting the file is worth it."""


def vacuum(ledger: Ledger) -> str:
    """Rewrites a SQLite ledger without its free pages; what was done, in words.

    Not while a run has a lease: it would wait for the rewriting. PostgreSQL does this by itself.
    """
    file = ledger.database.file
    if file is None:
        return "the ledger is on PostgreSQL, whose autovacuum does this"
    if not ledger.exists():
        return "there is no ledger yet"
    with ledger.database.read() as connection:
        now = ledger.database.now(connection)
        query = select(func.count()).select_from(leases).where(leases.c.expires_at > now)
        if connection.execute(query).scalar_one():
            return "the ledger is in use: left as it is until the next time"
    ledger.close()
    size = file.stat().st_size
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
        [pages], [free] = (
            database.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count")
        )
        database.execute("PRAGMA optimize")
        if free > FREE_SHARE * pages:
            database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return f"the ledger had {size:,} bytes, {free} of {pages} pages free, and has {file.stat().st_size:,}"
