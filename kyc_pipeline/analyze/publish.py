"""Publication: the only code that replaces the published warehouse, and opens it for reading.

A new file is built beside the published one and replaces it with one rename. Open connections keep the old
build; new ones get the old or the new build, complete, without waiting. DuckDB itself cannot do this: while
one process has a file open for writing, no other process can open it. So nobody may write the published file.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import duckdb

from kyc_pipeline.errors import KycError
from kyc_pipeline.lake import atomic
from kyc_pipeline.lake.atomic import StrPath
from kyc_pipeline.lake.storage import duckdb_path
from kyc_pipeline.lake.tables import Zone

_FILE_MODE: Final = 0o444
_CATALOG: Final = "kyc"
_HOLDER: Final = re.compile(r"lock is held in (?P<program>.+?) \(PID (?P<pid>[0-9]+)\)")


@contextlib.contextmanager
def new_draft(warehouse: Path) -> Iterator[Path]:
    """A new path for a build, on the file system of `warehouse`; a file left there is removed at the end.

    Removes the drafts of crashed builds first.
    """
    warehouse.parent.mkdir(parents=True, exist_ok=True)
    atomic.remove_drafts(atomic.drafts_of(warehouse))
    with atomic.new_draft(warehouse) as draft:
        folder = Path(atomic.draft_folder(draft.name))
        folder.mkdir()
        yield folder / warehouse.name


def remove_draft(draft: Path) -> None:
    """Removes a database file with its WAL and its spill folder."""
    shutil.rmtree(f"{draft}.tmp", ignore_errors=True)
    for path in (draft, draft.with_name(f"{draft.name}.wal")):
        path.unlink(missing_ok=True)


def publish(draft: Path, warehouse: Path, built_ns: int | None = None) -> None:
    """Replaces `warehouse` with `draft`, which is closed and on the same file system: atomic and durable.

    `built_ns`, the time of the build, becomes the file's modification time: see :mod:`up_to_date`.

    Raises :class:`KycError` if the draft is missing or was not closed. The published file is then unchanged.
    """
    if not draft.is_file():
        raise KycError(f"there is no draft to publish as {warehouse.name}: build it first")
    if draft.with_name(f"{draft.name}.wal").exists():
        raise KycError(f"the draft of {warehouse.name} was not closed: build it again")
    os.chmod(draft, _FILE_MODE)
    if built_ns is not None:
        stamp(draft, built_ns)
    # A WAL that somebody's writable connection left belongs to the old file.
    warehouse.with_name(f"{warehouse.name}.wal").unlink(missing_ok=True)
    atomic.move_into_place(draft, warehouse)


def stamp(path: StrPath, time_ns: int) -> None:
    """Sets the modification time of a file, in nanoseconds since the epoch."""
    os.utime(path, ns=(time_ns, time_ns))


@contextlib.contextmanager
def open_warehouse(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection to the published build, which later publications do not change.

    It attaches the file to a new in-memory database: `duckdb.connect(path)` would return an old build if this
    process still has that open. Raises :class:`KycError` without a warehouse, or if somebody has it open for
    writing all the same.
    """
    if not path.is_file():
        raise KycError(f"there is no warehouse at {path}: run a partition, or set KYC_WAREHOUSE")
    with duckdb.connect() as connection:
        try:
            name = str(path).replace("'", "''")
            connection.execute(f"ATTACH '{name}' AS {_CATALOG} (READ_ONLY)")
        except duckdb.Error as error:
            raise KycError(_why_closed(path, error)) from error
        connection.execute(f"USE {_CATALOG}")
        yield connection


def _why_closed(path: Path, error: duckdb.Error) -> str:
    if "Could not set lock" not in str(error):
        return f"the warehouse at {path} cannot be opened: build it again"
    holder = _HOLDER.search(str(error))
    who = f"{holder['program']} (process {holder['pid']})" if holder else "another program"
    return (
        f"the warehouse at {path} is open for writing in {who}: close it there, and open it read-only; "
        "or publish again, which puts a new file in its place"
    )


def seal(connection: duckdb.DuckDBPyConnection, lake: str) -> None:
    """Leaves a connection of `open_warehouse` nothing to read but the warehouse, and no setting to change.

    If facts are views over the lake at `lake`, its curated zone stays open. DuckDB would then also
    write there: refuse COPY before.
    """
    views = "FROM duckdb_views() WHERE database_name = $1 AND NOT internal"
    if connection.execute(views, [_CATALOG]).fetchall():
        curated = f"{lake}/{Zone.CURATED}"
        folders = "', '".join(each.replace("'", "''") for each in (curated, duckdb_path(curated)))
        connection.execute(f"SET allowed_directories = ['{folders}']")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
