"""Publication: the only code that replaces the published warehouse, and opens it for reading.

A *place* is a file, or `s3://bucket/prefix` (see :mod:`object_place`). What follows is about a file.

A new file is built beside the published one and replaces it with one rename. Open connections keep the old
build; new ones get the old or the new build, complete, without waiting. DuckDB itself cannot do this: while
one process has a file open for writing, no other process can open it. So nobody may write the published file.
"""

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import duckdb

from kyc_pipeline import quiet_duckdb
from kyc_pipeline.analyze.choices import literal
from kyc_pipeline.errors import KycError, missing_extra
from kyc_pipeline.lake import atomic
from kyc_pipeline.lake.atomic import StrPath
from kyc_pipeline.lake.storage import duckdb_path
from kyc_pipeline.lake.tables import Zone
from kyc_pipeline.scratch import scratch_folder

if TYPE_CHECKING:
    from kyc_pipeline.analyze.object_place import ObjectPlace

Place: TypeAlias = Path | str
"""A file, or `s3://bucket/prefix`."""
_FILE_MODE: Final = 0o444
_RESTRICTED_MODE: Final = 0o600
_CATALOG: Final = "kyc"
EXACT: Final = "exact"
"""The name under which the restricted file is attached."""
ONLY_EXACT: Final = ("labels", "submission_labels", "labelled_results")
"""Tables that only the restricted file has, if there is one: the truth about single submissions.

They would give away what the counts by dimension hide.
"""
_HOLDER: Final = re.compile(r"lock is held in (?P<program>.+?) \(PID (?P<pid>[0-9]+)\)")


def restricted_path(warehouse: Path) -> Path:
    """The restricted file of a warehouse (or of its draft), which has the tables without hidden cells."""
    return warehouse.with_stem(f"{warehouse.stem}_restricted")


def objects_at(url: str) -> "ObjectPlace":
    """What is published in an object store. Raises :class:`UsageError` without the extra `s3`."""
    try:
        from kyc_pipeline.analyze.object_place import ObjectPlace  # s3fs takes half a second
    except ImportError:
        raise missing_extra(f"KYC_WAREHOUSE or KYC_REPORT at {url}", "s3") from None
    return ObjectPlace(url)


def name_of(place: Place) -> str:
    """The place's name among those of all hosts, for the ledger."""
    return place if isinstance(place, str) else f"{socket.gethostname()}:{place}"


@contextlib.contextmanager
def new_draft(place: Place) -> Iterator[Path]:
    """A new path for a build, on the file system of a published file; what is left there is removed.

    Removes the drafts of crashed builds first.
    """
    if isinstance(place, str):
        with scratch_folder() as scratch:
            yield Path(scratch) / "kyc.duckdb"
        return
    atomic.make_folder(place.parent)
    atomic.remove_drafts(atomic.drafts_of(place))
    with atomic.new_draft(place) as draft:
        folder = Path(atomic.draft_folder(draft.name))
        folder.mkdir(mode=0o700)  # the draft of the restricted file is in it
        yield folder / place.name


def remove_draft(draft: Path) -> None:
    """Removes a draft and its restricted file, with their WALs and the spill folder."""
    shutil.rmtree(f"{draft}.tmp", ignore_errors=True)
    for path in (draft, restricted_path(draft)):
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.wal").unlink(missing_ok=True)


def publish(
    draft: Path,
    place: Place,
    built_ns: int | None = None,
    sequence: int = 0,
    confirm: Callable[[], None] = lambda: None,
) -> None:
    """Replaces the published build with `draft`, which is closed and on its file system: atomic and durable.

    The restricted file is replaced first, so that a published build never has an older one beside it; if the
    draft has none, that of an earlier build is removed. `built_ns`, the time of the build, becomes the files'
    modification time: see :mod:`up_to_date`. `confirm` is called just before the change, and raises if it
    must not happen.

    Raises :class:`KycError` if the draft is missing or was not closed, or if the published build has a higher
    `sequence`. The published file is then unchanged.
    """
    if not draft.is_file():
        raise KycError(f"there is no draft to publish as {_short(place)}: build it first")
    if draft.with_name(f"{draft.name}.wal").exists():
        raise KycError(f"the draft of {_short(place)} was not closed: build it again")
    restricted = restricted_path(draft) if restricted_path(draft).is_file() else None
    if isinstance(place, str):
        objects_at(place).publish(draft, restricted, sequence, built_ns or 0, confirm)
        return
    if sequence and (newer := published_sequence(place)) > sequence:
        raise KycError(f"not published: {place} has a newer build ({newer})")
    confirm()
    if restricted:
        _replace(restricted, restricted_path(place), _RESTRICTED_MODE, built_ns)
    else:
        restricted_path(place).unlink(missing_ok=True)
    _replace(draft, place, _FILE_MODE, built_ns)


def published_sequence(place: Place) -> int:
    """The sequence of the published build; 0 if there is none, or none with a sequence."""
    if isinstance(place, str):
        pointer = objects_at(place).pointer()
        return pointer.sequence if pointer else 0
    try:
        with open_warehouse(place) as connection:
            return int(connection.execute("SELECT sequence FROM build_info").fetchall()[0][0] or 0)
    except (KycError, duckdb.Error, IndexError):
        return 0


def remove_old(place: Place, erased: datetime | None = None, *, at_once: bool = False) -> int:
    """Removes the builds in an object store that were replaced; see :meth:`ObjectPlace.remove_old`."""
    return objects_at(place).remove_old(erased, at_once=at_once) if isinstance(place, str) else 0


def problems(place: Place, built_ns: int, *, is_restricted: bool) -> list[str]:
    """What shows that the published files are not those of this build, one line each."""
    found = []
    if not _has_build(place, built_ns):
        found.append("the warehouse was changed after its publication")
    if is_restricted and not _has_build(place, built_ns, restricted=True):
        found.append("its restricted file is missing or of another build")
    return found


def _has_build(place: Place, built_ns: int, *, restricted: bool = False) -> bool:
    if isinstance(place, str):
        return objects_at(place).has_build(built_ns, restricted=restricted)
    return has_stamp(restricted_path(place) if restricted else place, built_ns)


def is_published(place: Place) -> bool:
    """Whether there is a warehouse, or a restricted file."""
    if isinstance(place, str):
        return objects_at(place).pointer() is not None
    return place.exists() or restricted_path(place).exists()


def has_restricted(place: Place) -> bool:
    """Whether the published warehouse has a restricted file."""
    if isinstance(place, str):
        pointer = objects_at(place).pointer()
        return pointer is not None and pointer.restricted is not None
    return restricted_path(place).is_file()


def size_of(place: Place) -> int:
    """Bytes of the published file."""
    return objects_at(place).size() if isinstance(place, str) else place.stat().st_size


def _short(place: Place) -> str:
    return place if isinstance(place, str) else place.name


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


def has_stamp(path: Path, built_ns: int) -> bool:
    """Whether a published file was made from this build and not changed since."""
    return path.is_file() and path.stat().st_mtime_ns == built_ns


def time_of_build(connection: duckdb.DuckDBPyConnection) -> int:
    """When the build of this connection was made, in nanoseconds since the epoch."""
    ((built_ns,),) = connection.execute("SELECT epoch_ns(built_at) FROM build_info").fetchall()
    return int(built_ns)


@contextlib.contextmanager
def open_warehouse(place: Place, *, exact: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection to the published build, which later publications do not change.

    `exact`: the tables of the restricted file take the place of the published ones.

    It attaches the file to a new in-memory database: `duckdb.connect(path)` would return an old build if this
    process still has that open. Raises :class:`KycError` without a warehouse (or restricted file), or if
    somebody has it open for writing all the same.
    """
    with quiet_duckdb.connect() as connection:
        if isinstance(place, str):
            objects_at(place).attach(connection, _CATALOG, EXACT if exact else None)
        else:
            _attach_file(connection, place, exact=exact)
        connection.execute(f"USE {_CATALOG}")
        if exact:
            connection.execute(f"SET search_path = '{EXACT}.main,{_CATALOG}.main'")
        yield connection


def _attach_file(connection: duckdb.DuckDBPyConnection, path: Path, *, exact: bool) -> None:
    if not path.is_file():
        raise KycError(f"there is no warehouse at {path}: run `kyc-pipeline backfill`, or set KYC_WAREHOUSE")
    _attach(connection, path, _CATALOG)
    if exact:
        restricted = restricted_path(path)
        if not restricted.is_file():
            raise KycError(f"there is no {restricted}: with KYC_MIN_CELL=1, {path.name} is already exact")
        if not os.access(restricted, os.R_OK):
            raise KycError(f"{restricted} can be read only by its owner, who runs the pipeline")
        _attach(connection, restricted, EXACT)


def _attach(connection: duckdb.DuckDBPyConnection, path: Path, name: str) -> None:
    try:
        connection.execute(f"ATTACH {literal(str(path))} AS {name} (READ_ONLY)")
    except duckdb.Error as error:
        raise KycError(_why_closed(path, error)) from error


def _why_closed(path: Path, error: duckdb.Error) -> str:
    if "Could not set lock" not in str(error):
        return f"the warehouse at {path} cannot be opened: build it again with `kyc-pipeline publish`"
    holder = _HOLDER.search(str(error))
    who = f"{holder['program']} (process {holder['pid']})" if holder else "another program"
    return (
        f"the warehouse at {path} is open for writing in {who}: close it there, and open it read-only; "
        "or publish again, which puts a new file in its place"
    )


def has_views(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether facts are views over the lake, in a connection of `open_warehouse`."""
    views = "FROM duckdb_views() WHERE database_name = $1 AND NOT internal"
    return bool(connection.execute(views, [_CATALOG]).fetchall())


def seal(connection: duckdb.DuckDBPyConnection, lake: str, spill: str) -> None:
    """Leaves a connection of `open_warehouse` nothing to read but the warehouse, and no setting to change.

    `spill` is an empty folder for what does not fit into memory: DuckDB leaves SQL access to it, and by
    default it would be `.tmp` in the working directory. If facts are views over the lake at `lake`, its
    curated zone stays open, too: :mod:`lake_views` refuses SQL that names its files. DuckDB would also write
    to both: refuse COPY before.
    """
    connection.execute(f"SET temp_directory = {literal(spill)}")
    if has_views(connection):
        curated = f"{lake}/{Zone.CURATED}"
        folders = ", ".join(literal(folder) for folder in (curated, duckdb_path(curated)))
        connection.execute(f"SET allowed_directories = [{folders}]")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
