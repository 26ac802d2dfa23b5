"""Atomic partitions: one Parquet file for each table and day, replaced whole.

`<root>/<zone>/<table>/date=<D>/part-0.parquet`, zstd. A partition is one file, so replacing it is one
rename in a folder and one PUT in an object store: a reader sees the old rows or the new ones, never both
or neither, and a crash leaves the old ones. A file that was begun and not finished has a hidden name that
no reader's glob matches, and is removed by the next writer of the partition.
"""

import contextlib
import datetime
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Final

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.tables import Table, Zone

FILE_NAME: Final = "part-0.parquet"
ROW_GROUP_ROWS: Final = 122_880
"""DuckDB's own row group size: a row group is its unit of parallel work."""
_DRAFT_PREFIX: Final = ".draft-"


class PartitionMissing(KycError):
    """The partition has never been written."""


class PartitionUnreadable(KycError):
    """The partition's file exists and cannot be read."""


class PartitionWriter:
    """Writes one partition; rows become visible, all at once, when the `with` block ends without an error."""

    def __init__(
        self, lake: "Lake", table: Table, date: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        self._lake = lake
        self._table = table
        self._date = date
        self._schema = table.schema.with_metadata(dict(metadata or {}))
        self._target = lake.path(table, date)
        self.rows = 0
        self._sink: Any

    def __enter__(self) -> "PartitionWriter":
        fs, folder = self._lake.fs, str(PurePosixPath(self._target).parent)
        if self._lake.is_local:
            fs.makedirs(folder, exist_ok=True)
            self._lake.protect(self._table)
            # In an object store an unfinished upload is never visible, so only a folder has drafts.
            self._draft = f"{folder}/{_DRAFT_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
            self._sink = open(self._draft, "wb")
        else:
            self._sink = fs.open(self._target, "wb", autocommit=False)
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")
        return self

    def write(self, rows: pa.Table | pa.RecordBatch | list[dict[str, Any]]) -> None:
        """Appends rows: Arrow data with the table's columns (any order), or one dict a row."""
        if isinstance(rows, list):
            data = pa.Table.from_pylist(rows, schema=self._schema)
        else:
            data = pa.table(rows) if isinstance(rows, pa.RecordBatch) else rows
            data = data.select(self._schema.names).cast(self._schema)
        self.rows += data.num_rows
        self._writer.write_table(data, row_group_size=ROW_GROUP_ROWS)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._writer.close()
            if self._lake.is_local:
                self._sink.flush()
                os.fsync(self._sink.fileno())
            self._sink.close()
        except BaseException:
            if error is None:
                self._discard()
                raise
        if error is not None:
            self._discard()
        elif self._lake.is_local:
            os.replace(self._draft, self._target)
            sync(os.path.dirname(self._target))
            self._lake.remove_drafts(self._table, self._date)
        else:
            self._sink.commit()

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            if self._lake.is_local:
                os.unlink(self._draft)
            else:
                self._sink.discard()


class Lake:
    """The tables under one root: a folder or `s3://bucket/prefix`."""

    def __init__(self, root: str) -> None:
        self.fs, path = fsspec.core.url_to_fs(root)
        self.root = str(path).rstrip("/")
        self.is_local = "file" in (
            (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        )

    def path(self, table: Table, date: str) -> str:
        """The file of one partition. `date` is an ISO date; anything else is a ValueError."""
        if datetime.date.fromisoformat(date).isoformat() != date:
            raise ValueError(f"not a partition date: {date}")
        return f"{self.folder(table)}/date={date}/{FILE_NAME}"

    def folder(self, table: Table) -> str:
        """The folder of one table."""
        return f"{self.root}/{table.zone}/{table.name}"

    def writer(self, table: Table, date: str, metadata: Mapping[str, str] | None = None) -> PartitionWriter:
        """A context manager that replaces one partition; `metadata` goes into the file's footer."""
        return PartitionWriter(self, table, date, metadata)

    def write(
        self,
        table: Table,
        date: str,
        rows: pa.Table | list[dict[str, Any]],
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """Replaces one partition by `rows`; returns their number. No rows still make a partition."""
        with self.writer(table, date, metadata) as writer:
            writer.write(rows)
        return writer.rows

    def exists(self, table: Table, date: str) -> bool:
        """Whether the partition has been written."""
        return bool(self.fs.exists(self.path(table, date)))

    def dates(self, table: Table) -> list[str]:
        """The partitions that have been written, in order."""
        found = self.fs.glob(f"{self.folder(table)}/date=*/{FILE_NAME}")
        return sorted(PurePosixPath(str(path)).parent.name.removeprefix("date=") for path in found)

    def read(self, table: Table, date: str, columns: list[str] | None = None) -> pa.Table:
        """The partition's rows. Raises :class:`PartitionMissing` or :class:`PartitionUnreadable`."""
        with self._open(table, date) as file:
            return file.read(columns=columns)

    def batches(
        self, table: Table, date: str, columns: list[str] | None = None, batch_size: int = 4096
    ) -> Iterator[pa.RecordBatch]:
        """The partition's rows, `batch_size` at a time, from one snapshot: memory does not grow with it."""
        with self._open(table, date) as file:
            yield from file.iter_batches(batch_size=batch_size, columns=columns)

    def row_count(self, table: Table, date: str) -> int:
        """Rows of the partition, from its footer."""
        with self._open(table, date) as file:
            return int(file.metadata.num_rows)

    def metadata(self, table: Table, date: str) -> dict[str, str]:
        """The footer's metadata, as given to the writer."""
        with self._open(table, date) as file:
            pairs = file.schema_arrow.metadata or {}
        return {key.decode(): value.decode() for key, value in pairs.items()}

    @contextlib.contextmanager
    def _open(self, table: Table, date: str) -> Iterator[pq.ParquetFile]:
        path = self.path(table, date)
        try:
            source = self.fs.open(path, "rb")
        except FileNotFoundError:
            raise PartitionMissing(f"{table.name} has no partition {date}: materialize it first") from None
        with source:
            try:
                yield pq.ParquetFile(source)
            except (pa.ArrowException, OSError) as error:
                raise PartitionUnreadable(
                    f"{table.name} partition {date} cannot be read: materialize it again"
                ) from error

    def protect(self, table: Table) -> None:
        """Keeps the restricted zone's folder from other users of this machine (mode 0700)."""
        if table.zone is Zone.RESTRICTED:
            os.chmod(f"{self.root}/{table.zone}", 0o700)

    def remove_drafts(self, table: Table, date: str) -> None:
        """Removes what crashed writers of this partition left."""
        folder = os.path.dirname(self.path(table, date))
        for name in os.listdir(folder):
            if name.startswith(_DRAFT_PREFIX) and not is_running(int(name.split("-")[1])):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{folder}/{name}")


def sync(path: str | os.PathLike[str]) -> None:
    """Makes a file's content, or a rename in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_running(pid: int) -> bool:
    """Whether a process of this machine has the id: its drafts are not to be removed."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
