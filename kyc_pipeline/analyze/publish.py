"""Publication: the one place that puts a warehouse where analysts open it, and opens it for reading.

A new file is built beside the published one and replaces it by one rename. Who has the old file open keeps
it; who opens the path gets the old build or the new one, whole, and never waits. DuckDB itself cannot do
this: while one process writes a file, no other can open it at all.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import duckdb

from kyc_pipeline.errors import KycError
from kyc_pipeline.lake import atomic

_FILE_MODE: Final = 0o644
_CATALOG: Final = "kyc"


@contextlib.contextmanager
def new_draft(warehouse: Path) -> Iterator[Path]:
    """A fresh path on the file system of `warehouse`, for a build. What is left there is removed at the end.

    Stale drafts of crashed builds are removed first.
    """
    warehouse.parent.mkdir(parents=True, exist_ok=True)
    atomic.remove_drafts(atomic.drafts_of(warehouse))
    with atomic.new_draft(warehouse) as draft:
        folder = Path(atomic.draft_folder(draft.name))
        folder.mkdir()
        yield folder / warehouse.name


def remove_draft(draft: Path) -> None:
    """Removes a database and what DuckDB keeps beside it."""
    shutil.rmtree(f"{draft}.tmp", ignore_errors=True)
    for path in (draft, draft.with_name(f"{draft.name}.wal")):
        path.unlink(missing_ok=True)


def publish(draft: Path, warehouse: Path) -> None:
    """Replaces `warehouse` by `draft` (closed, on the same disk) in one step that survives a power cut.

    Raises :class:`KycError` if the draft is missing or still has unwritten changes; the published file is
    then as it was.
    """
    if not draft.is_file():
        raise KycError(f"there is no draft to publish as {warehouse.name}: build it first")
    if draft.with_name(f"{draft.name}.wal").exists():
        raise KycError(f"the draft of {warehouse.name} was not closed: build it again")
    os.chmod(draft, _FILE_MODE)
    # A log that someone's writable connection left belongs to the file that is replaced, not to this one.
    warehouse.with_name(f"{warehouse.name}.wal").unlink(missing_ok=True)
    atomic.move_into_place(draft, warehouse)


@contextlib.contextmanager
def open_warehouse(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection to the build that is published now; later publications do not change it.

    It is a connection of its own with the file attached: `duckdb.connect(path)` would hand out the old
    build as long as any part of this process still has it open. Raises :class:`KycError` if there is none.
    """
    if not path.is_file():
        raise KycError(f"there is no warehouse at {path}: run a partition, or set KYC_WAREHOUSE")
    with duckdb.connect() as connection:
        try:
            name = str(path).replace("'", "''")
            connection.execute(f"ATTACH '{name}' AS {_CATALOG} (READ_ONLY)")
        except duckdb.Error as error:
            raise KycError(f"the warehouse at {path} cannot be opened: build it again") from error
        connection.execute(f"USE {_CATALOG}")
        yield connection
