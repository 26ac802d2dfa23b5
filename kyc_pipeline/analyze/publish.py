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

from kyc_pipeline.analyze.choices import literal
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake import atomic
from kyc_pipeline.lake.atomic import StrPath
from kyc_pipeline.lake.storage import duckdb_path
from kyc_pipeline.lake.tables import Zone

_FILE_MODE: Final = 0o444
_RESTRICTED_MODE: Final = 0o600
_CATALOG: Final = "kyc"
EXACT: Final = "exact"
"""The name under which the restricted file is attached."""
_HOLDER: Final = re.compile(r"lock is held in (?P<program>.+?) \(PID (?P<pid>[0-9]+)\)")


def restricted_path(warehouse: Path) -> Path:
    """The restricted file of a warehouse (or of its draft), which has the tables without hidden cells."""
    return warehouse.with_stem(f"{warehouse.stem}_restricted")


@contextlib.contextmanager
def new_draft(warehouse: Path) -> Iterator[Path]:
    """A new path for a build, on the file system of `warehouse`; a file left there is removed at the end.

    Removes the drafts of crashed builds first.
    """
    atomic.make_folder(warehouse.parent)
    atomic.remove_drafts(atomic.drafts_of(warehouse))
    with atomic.new_draft(warehouse) as draft:
        folder = Path(atomic.draft_folder(draft.name))
        folder.mkdir(mode=0o700)  # the draft of the restricted file is in it
        yield folder / warehouse.name


def remove_draft(draft: Path) -> None:
    """Removes a draft and its restricted file, with their WALs and the spill folder."""
    shutil.rmtree(f"{draft}.tmp", ignore_errors=True)
    for path in (draft, restricted_path(draft)):
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.wal").unlink(missing_ok=True)


def publish(draft: Path, warehouse: Path, built_ns: int | None = None) -> None:
    """Replaces `warehouse` with `draft`, which is closed and on the same file system: atomic and durable.

    The restricted file is replaced first, so that a published build never has an older one beside it; if the
    draft has none, that of an earlier build is removed. `built_ns`, the time of the build, becomes the files'
    modification time: see :mod:`up_to_date`.

    Raises :class:`KycError` if the draft is missing or was not closed. The published file is then unchanged.
    """
    if not draft.is_file():
        raise KycError(f"there is no draft to publish as {warehouse.name}: build it first")
    if draft.with_name(f"{draft.name}.wal").exists():
        raise KycError(f"the draft of {warehouse.name} was not closed: build it again")
    if restricted_path(draft).is_file():
        _replace(restricted_path(draft), restricted_path(warehouse), _RESTRICTED_MODE, built_ns)
    else:
        restricted_path(warehouse).unlink(missing_ok=True)
    _replace(draft, warehouse, _FILE_MODE, built_ns)


def _replace(draft: Path, target: Path, mode: int, built_ns: int | None) -> None:
    os.chmod(draft, mode)
    if built_ns is not None:
        stamp(draft, built_ns)
    # A WAL that somebody's writable connection left belongs to the old file.
    target.with_name(f"{target.name}.wal").unlink(missing_ok=True)
    atomic.move_into_place(draft, target)


def stamp(path: StrPath, time_ns: int) -> None:
    """Sets the modification time of a file, in nanoseconds since the epoch."""
    os.utime(path, ns=(time_ns, time_ns))


def time_of_build(connection: duckdb.DuckDBPyConnection) -> int:
    """When the build of this connection was made, in nanoseconds since the epoch."""
    ((built_ns,),) = connection.execute("SELECT epoch_ns(built_at) FROM build_info").fetchall()
    return int(built_ns)


@contextlib.contextmanager
def open_warehouse(path: Path, *, exact: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection to the published build, which later publications do not change.

    `exact`: the tables of the restricted file take the place of the published ones.

    It attaches the file to a new in-memory database: `duckdb.connect(path)` would return an old build if this
    process still has that open. Raises :class:`KycError` without a warehouse (or restricted file), or if
    somebody has it open for writing all the same.
    """
    if not path.is_file():
        raise KycError(f"there is no warehouse at {path}: run a partition, or set KYC_WAREHOUSE")
    with duckdb.connect() as connection:
        _attach(connection, path, _CATALOG)
        connection.execute(f"USE {_CATALOG}")
        if exact:
            restricted = restricted_path(path)
            if not restricted.is_file():
                raise KycError(f"there is no {restricted}: with KYC_MIN_CELL=1, {path.name} is already exact")
            if not os.access(restricted, os.R_OK):
                raise KycError(f"{restricted} can be read only by its owner, who runs the pipeline")
            _attach(connection, restricted, EXACT)
            connection.execute(f"SET search_path = '{EXACT}.main,{_CATALOG}.main'")
        yield connection


def _attach(connection: duckdb.DuckDBPyConnection, path: Path, name: str) -> None:
    try:
        connection.execute(f"ATTACH {literal(str(path))} AS {name} (READ_ONLY)")
    except duckdb.Error as error:
        raise KycError(_why_closed(path, error)) from error


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
        folders = ", ".join(literal(folder) for folder in (curated, duckdb_path(curated)))
        connection.execute(f"SET allowed_directories = [{folders}]")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
