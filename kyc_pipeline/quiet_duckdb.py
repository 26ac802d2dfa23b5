"""Connections to DuckDB that print nothing.

DuckDB takes a Python process without a script, as Dagster's run workers are, for an interactive one. There,
it draws the progress of longer queries on standard output, which Dagster keeps with the run.
"""

from pathlib import Path
from typing import Any

import duckdb


def connect(database: str | Path = ":memory:", **options: Any) -> duckdb.DuckDBPyConnection:
    """A connection without progress bars; its options and errors are those of `duckdb.connect`."""
    connection = duckdb.connect(database, **options)
    connection.execute("SET enable_progress_bar = false")  # it is no option of `connect`
    return connection
