"""Atomic partitions: one Parquet file per table and day, always replaced as a whole.

`<root>/<zone>/<table>/date=<D>/part-0.parquet`, zstd; without the folder of the day if a table is not daily.
A partition is one file, so replacing it is one rename in a folder and one PUT in an object store: a reader
sees the old rows or the new ones, never both or neither, and a crash leaves the old ones. The next writer of
the partition removes the drafts of crashed writers. An object can be replaced while a reader has it open, so
in an object store readers work on a local copy of one version.

The root may have any name. Folders are listed, never matched with a pattern. DuckDB treats every path as a
pattern, so its paths are escaped (:func:`duckdb_path`). It would also read each `key=value` folder of the
root as a column, so the day is read from the end of a path (:data:`DAY_OF_PATH`).

Arrow opens local files itself. Its threads may still hold the data when a read returns. If that were Python's
memory, a process that exits at that moment would abort.
"""

import contextlib
import glob
import hashlib
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from kyc_pipeline.days import is_day
from kyc_pipeline.errors import KycError, UsageError, missing_extra
from kyc_pipeline.lake.atomic import DRAFT_PREFIX, make_folder, remove_drafts, replacing, revoke_drafts
from kyc_pipeline.lake.tables import Table, Zone
from kyc_pipeline.wording import run_again

PART_FILE: Final = "part-0.parquet"
WHOLE: Final = ""
"""Stands for the date of the only partition of a table that is not daily."""
ROW_GROUP_ROWS: Final = 122_880
"""DuckDB's own row group size: a row group is its unit of parallel work."""
DICTIONARY_BYTES: Final = 1 << 16
"""Largest dictionary of a column; a column that exceeds it uses plain encoding. With Arrow's default of 1 MB,
ids and pseudonyms fill useless dictionaries: writing takes a sixth longer, and files are a fifth larger."""
COPY_ATTEMPTS: Final = 10
"""Attempts to copy an object that keeps being replaced."""
DAY_OF_PATH: Final = f"date=([0-9-]+)/{re.escape(PART_FILE)}$"
"""Regular expression, for Python and DuckDB, whose first group is the day of a partition's file."""
SMALL: Final = 8 << 20
"""Bytes of the largest object that is fetched whole, in one request."""
_TAIL_BYTES: Final = 1 << 16
"""More than most footers have."""
_COPY_BYTES: Final = 1 << 22
_WRITER: Final = "writer"
"""Metadata of an object: a value that its writer alone knows."""
_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)
_IDENTITY: Final = ("size", "mtime", "ino", "LastModified", "created")
"""File metadata that changes when a file is replaced; each file system has some of these fields. In an object
store, the `ETag` alone identifies the content."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition in a listing: its path for other readers, and a version that changes with its file."""

    path: str
    version: tuple[str, ...]
    size: int
    """Bytes of the file."""


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def duckdb_path(path: str | os.PathLike[str]) -> str:
    """`path`, escaped for a table function of DuckDB, so that it matches this file only."""
    return glob.escape(os.fspath(path))


class PartitionMissing(KycError):
    """The partition has never been written."""


class PartitionUnreadable(KycError):
    """The partition's file exists but cannot be read."""


class PartitionReplaced(KycError):
    """Another writer has replaced the partition since this one began: its rows are discarded."""


class PartitionWriter:
    """Appends rows to one partition. :meth:`Lake.writer` yields it."""

    def __init__(self, parquet: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._parquet = parquet
        self._schema = schema
        self.rows = 0

    def write(self, rows: pa.Table | pa.RecordBatch | list[dict[str, Any]]) -> None:
        """Appends rows: Arrow data with the table's columns (any order), or one dict per row."""
        if isinstance(rows, list):
            data = pa.Table.from_pylist(rows, schema=self._schema)
        else:
            data = pa.table(rows) if isinstance(rows, pa.RecordBatch) else rows
            data = data.select(self._schema.names).cast(self._schema)
        self.rows += data.num_rows
        self._parquet.write_table(data, row_group_size=ROW_GROUP_ROWS)

    def add_metadata(self, metadata: Mapping[str, str]) -> None:
        """Adds to the footer's metadata, for what is known only after the rows."""
        self._parquet.add_key_value_metadata(dict(metadata))


class Lake:
    """The tables under one root: a folder or `s3://bucket/prefix`.

    Raises :class:`UsageError` if the root cannot be one.
    """

    def __init__(self, root: str) -> None:
        if "://" in root:
            # A listings cache would hide partitions that other processes write.
            try:
                self.fs, path = fsspec.core.url_to_fs(root, use_listings_cache=False)
            except ImportError:
                raise missing_extra("KYC_LAKE=s3://…", "s3") from None
        else:  # not through fsspec, where `::` in a path has a meaning
            self.fs, path = LocalFileSystem(), os.path.abspath(os.path.expanduser(root))
            if "\\" in path:  # DuckDB reads it as a separator, and it cannot be escaped
                raise UsageError(f"KYC_LAKE: {path} has a backslash in its path: choose another folder")
            # The root may not exist yet; then what exists above it counts.
            nearest = next(each for each in (Path(path), *Path(path).parents) if os.path.lexists(each))
            if not os.path.isdir(nearest):
                raise UsageError(
                    f"KYC_LAKE: {nearest} is not a folder: mount its volume, or choose another one"
                )
        self.root = str(path).rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lake) and (self.fs, self.root) == (other.fs, other.root)

    def __hash__(self) -> int:
        return hash((self.fs, self.root))

    def path(self, table: Table, date: str) -> str:
        """The file of one partition. `date` is an ISO date, or WHOLE; anything else is a ValueError."""
        if not table.is_daily and date == WHOLE:
            return f"{self.folder(table)}/{PART_FILE}"
        if not table.is_daily:
            raise ValueError(f"{table.name} has no daily partitions")
        if not is_day(date):
            raise ValueError(f"not a partition date: {date}")
        return f"{self.folder(table)}/date={date}/{PART_FILE}"

    def folder(self, table: Table) -> str:
        """The folder of one table."""
        return f"{self.root}/{table.zone}/{table.name}"

    @contextlib.contextmanager
    def writer(
        self,
        table: Table,
        date: str,
        metadata: Mapping[str, str] | None = None,
        *,
        keep_identical: bool = False,
        confirm: Callable[[], None] = lambda: None,
    ) -> Iterator[PartitionWriter]:
        """Replaces one partition if the block succeeds; if it fails, the old rows stay.

        `metadata` is stored in the file's footer. With `keep_identical`, a local file stays as it is if the
        new one has the same content, so that the partition keeps its version. `confirm` is called
        when all rows are written, just before they replace the old ones: it raises if the caller may not.
        """
        schema = table.schema.with_metadata(dict(metadata or {}))
        with (
            self._replacing(table, date, keep_identical, confirm) as sink,
            pq.ParquetWriter(
                sink, schema, compression="zstd", dictionary_pagesize_limit=DICTIONARY_BYTES
            ) as parquet,
        ):
            yield PartitionWriter(parquet, schema)

    @contextlib.contextmanager
    def _replacing(
        self, table: Table, date: str, keep_identical: bool, confirm: Callable[[], None]
    ) -> Iterator[IO[bytes]]:
        """Yields a sink whose content replaces the partition if the block succeeds."""
        target = self.path(table, date)
        if not self.is_local:
            with _uploading(self.fs, target, confirm, _made_by(date)) as upload:
                yield upload
            return
        make_folder(os.path.dirname(target))
        if table.zone is Zone.RESTRICTED:
            os.chmod(f"{self.root}/{table.zone}", 0o700)  # closed to other users of this machine
        with replacing(target, keep_identical=keep_identical, confirm=confirm) as draft:
            yield draft
        with contextlib.suppress(OSError):  # the rows are published: a failed clean-up does not matter
            self.remove_drafts(table, date)

    def write(
        self,
        table: Table,
        date: str,
        rows: pa.Table | list[dict[str, Any]],
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """Replaces one partition with `rows`; returns how many. Without rows, the partition is empty."""
        with self.writer(table, date, metadata) as writer:
            writer.write(rows)
        return writer.rows

    def exists(self, table: Table, date: str) -> bool:
        """Whether the partition has been written."""
        return bool(self.fs.exists(self.path(table, date)))

    def dates(self, table: Table) -> list[str]:
        """The partitions that have been written, in order."""
        return list(self.partitions(table))

    def full_path(self, path: str) -> str:
        """A path of the file system, with its protocol if it is not local."""
        return path if self.is_local else str(self.fs.unstrip_protocol(path))

    def partitions(self, table: Table, date: str | None = None) -> dict[str, Partition]:
        """The partitions that have been written (of `date` alone, if given), by day in order: one listing.

        Raises OSError if a folder cannot be read.
        """
        place = self.folder(table) if date is None else os.path.dirname(self.path(table, date))
        file = DAY_OF_PATH if table.is_daily else f"(){re.escape(PART_FILE)}$"
        folder = re.compile(re.escape(f"{self.folder(table)}/") + file)
        options = {"on_error": _raise_unless_missing} if self.is_local else {}  # object stores raise anyway
        return {
            found[1]: Partition(
                self.full_path(path),
                _version(info),
                int(info["size"]),
            )
            for path, info in sorted(self.fs.find(place, detail=True, **options).items())
            if (found := folder.fullmatch(path))
        }

    def read(self, table: Table, date: str, columns: list[str] | None = None) -> pa.Table:
        """The partition's rows. Raises :class:`PartitionMissing` or :class:`PartitionUnreadable`."""
        with self._parquet(table, date) as file:
            return _with_new_columns(file.read(columns=columns), table, columns)

    def batches(
        self, table: Table, date: str, columns: list[str] | None = None, batch_size: int = 4096
    ) -> Iterator[pa.RecordBatch]:
        """The partition's rows in batches, from one snapshot and in bounded memory."""
        with self._parquet(table, date) as file:
            for batch in file.iter_batches(batch_size=batch_size, columns=columns):
                yield _with_new_columns(batch, table, columns)

    def row_count(self, table: Table, date: str) -> int:
        """Number of rows, from the partition's footer."""
        with self._parquet(table, date, footer_only=True) as file:
            return int(file.metadata.num_rows)

    def byte_count(self, table: Table, date: str) -> int:
        """Uncompressed size of the rows in bytes, from the partition's footer."""
        with self._parquet(table, date, footer_only=True) as file:
            groups = range(file.metadata.num_row_groups)
            return sum(file.metadata.row_group(group).total_byte_size for group in groups)

    def metadata(self, table: Table, date: str) -> dict[str, str]:
        """The metadata in the partition's footer, as given to the writer."""
        with self._parquet(table, date, footer_only=True) as file:
            pairs = file.metadata.metadata or {}
        return {key.decode(): value.decode() for key, value in pairs.items() if key != b"ARROW:schema"}

    def version(self, table: Table, date: str) -> str:
        """A value that changes whenever the partition is replaced. Unlike a hash, it needs no read."""
        try:
            return str(self.fs.ukey(self.path(table, date)))
        except FileNotFoundError:
            raise _missing(table, date) from None

    def sha256(self, table: Table, date: str) -> str:
        """SHA-256 (hex) of the partition's file, which must be readable Parquet."""
        with self._open(table, date) as source, _translated_errors(table, date):
            pq.ParquetFile(source)
            source.seek(0)
            digest = hashlib.sha256()
            while block := source.read(_COPY_BYTES):
                digest.update(block)
            return digest.hexdigest()

    @contextlib.contextmanager
    def _parquet(self, table: Table, date: str, *, footer_only: bool = False) -> Iterator[pq.ParquetFile]:
        with self._open(table, date, copy=not footer_only) as source, _translated_errors(table, date):
            # With `pre_buffer`, all row groups stay in memory until the file is closed.
            yield pq.ParquetFile(source, pre_buffer=False)

    @contextlib.contextmanager
    def _open(self, table: Table, date: str, *, copy: bool = True) -> Iterator[Any]:
        """Opens the partition's file; in an object store, a local copy of it unless `copy` is False."""
        path = self.path(table, date)
        source: Any
        try:
            if self.is_local:
                source = pa.OSFile(path, "rb")
            else:
                source = self._copy(path) if copy else self._tail(path)
        except FileNotFoundError:
            raise _missing(table, date) from None
        with source:
            yield source

    def _tail(self, path: str) -> Any:
        """The end of an object, with its footer: one request."""
        size = _TAIL_BYTES
        while True:
            tail: bytes = self.fs.cat_file(path, start=-size)
            needed = int.from_bytes(tail[-8:-4], "little") + 8 if tail.endswith(b"PAR1") else 0
            if needed <= size:
                return pa.BufferReader(tail)
            size = needed

    def _copy(self, path: str) -> pa.NativeFile:
        """Copies one version of an object to an anonymous temporary file: one request if it is small."""
        start = self.fs.cat_file(path, start=0, end=SMALL)
        if len(start) < SMALL:
            with tempfile.TemporaryFile() as copy:
                copy.write(start)
                copy.flush()
                return pa.OSFile(f"/dev/fd/{copy.fileno()}", "rb")
        for attempt in range(1, COPY_ATTEMPTS + 1):
            version = self.fs.ukey(path)
            with tempfile.TemporaryFile() as copy:
                try:
                    with self.fs.open(path, "rb", cache_type="none") as source:
                        shutil.copyfileobj(source, copy, _COPY_BYTES)
                except OSError:
                    # Reading fails if the object is replaced during the copy: then try again.
                    if attempt == COPY_ATTEMPTS or self.fs.ukey(path) == version:
                        raise
                else:
                    copy.flush()
                    return pa.OSFile(f"/dev/fd/{copy.fileno()}", "rb")
        raise AssertionError("unreachable: the last attempt returns or raises")

    def remove_drafts(self, table: Table, date: str = "*", *, older_than: float = math.inf) -> int:
        """Removes the stale drafts of one partition, or of all; see :func:`atomic.remove_drafts`.

        An object store has none: an unfinished upload is invisible, and a lifecycle rule aborts it.
        """
        if not self.is_local:
            return 0
        folder = f"date={date}/" if table.is_daily else ""
        pattern = f"{glob.escape(self.folder(table))}/{folder}{DRAFT_PREFIX}*"
        return remove_drafts(pattern, older_than=older_than)

    def revoke_drafts(self, table: Table, date: str) -> None:
        """Lets no other writer replace the partition with rows that it has begun to write.

        Call it under the day's lease. In an object store it does nothing: there, a writer replaces only the
        version that it found at its start.
        """
        if self.is_local:
            revoke_drafts(self.path(table, date))


def _with_new_columns(rows: _Rows, table: Table, columns: list[str] | None) -> _Rows:
    """The rows, with NULL in the columns that the table got after they were written."""
    for column in table.columns:
        is_wanted = columns is None or column.name in columns
        if is_wanted and column.nullable and column.name not in rows.schema.names:
            rows = rows.append_column(column.name, pa.array([None] * rows.num_rows, column.type))
    return rows


@contextlib.contextmanager
def _uploading(fs: Any, path: str, confirm: Callable[[], None], again: str) -> Iterator[IO[bytes]]:
    """Yields an upload; the object becomes visible, complete, if the block succeeds.

    It replaces only the version that was there at the start. So a writer that is suspended after `confirm`
    replaces nothing that others have written since, but raises :class:`KycError` with the advice `again`.
    """
    former = _headers(fs, path).get("ETag")
    condition = {"IfMatch": former} if former else {"IfNoneMatch": "*"}
    writer = {_WRITER: uuid.uuid4().hex}
    sink = fs.open(path, "wb", autocommit=False, Metadata=writer, **condition)
    try:
        yield sink
        sink.close()
        confirm()
        _commit(sink, fs, path, former, writer, again)
    except BaseException:
        with contextlib.suppress(OSError):
            sink.close()
        with contextlib.suppress(OSError):
            sink.discard()
        raise


def _commit(sink: Any, fs: Any, path: str, former: str | None, writer: Mapping[str, str], again: str) -> None:
    """Commits an upload whose metadata is `writer`. Raises :class:`PartitionReplaced` if `former` is gone."""
    try:
        sink.commit()
    except OSError as error:
        now = _headers(fs, path)
        if now.get("Metadata") == writer:
            return  # the client repeated a request whose response was lost
        if now.get("ETag") != former:
            raise PartitionReplaced(
                f"{path} was replaced by another run, so the rows of this one are discarded: {again}"
            ) from error
        raise


def _headers(fs: Any, path: str) -> Mapping[str, Any]:
    """The headers of an object, in one request; empty if there is none."""
    bucket, key, _ = fs.split_path(path)  # not at the first slash: the ARN of an access point has one
    try:
        headers: Mapping[str, Any] = fs.call_s3("head_object", Bucket=bucket, Key=key)
    except FileNotFoundError:
        return {}
    return headers


def _version(info: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("ETag",) if "ETag" in info else _IDENTITY
    return tuple(str(info[name]) for name in names if name in info)


def _missing(table: Table, date: str) -> PartitionMissing:
    return PartitionMissing(f"{table.name} has no partition {date}".rstrip() + f": {_made_by(date)}")


def _made_by(date: str) -> str:
    """What makes a partition."""
    return "run `kyc-pipeline publish`" if date == WHOLE else f"run the day, with {run_again(date)}"


@contextlib.contextmanager
def _translated_errors(table: Table, date: str) -> Iterator[None]:
    """Turns a read error into :class:`PartitionUnreadable`, which names the partition."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise PartitionUnreadable(
            f"{table.name} partition {date}".rstrip()
            + f" cannot be read: restore its file from a backup, or move it away and {_made_by(date)}"
        ) from error
