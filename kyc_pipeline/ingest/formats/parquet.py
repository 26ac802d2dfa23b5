"""Reads Parquet: typed columns, whose values become text by the rule of `typed_values.py`.

A few kilobytes can hold gigabytes of text, since each distinct value is stored once. So texts are read as
dictionaries, and unpacked in chunks of a few megabytes. Arrow cannot do that with all types, inside maps and
structs, or with delta encodings: a file with these is read a few rows at a time.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kyc_pipeline.ingest.formats.columns import TAG_PREFIX, Layout, count_ignored
from kyc_pipeline.ingest.formats.size_limits import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    DENSE_ROWS,
    MAX_COLUMN_BYTES,
    MAX_ROW_BYTES,
    MIN_DENSE_ROWS,
)
from kyc_pipeline.ingest.formats.typed_values import (
    ArrowColumn,
    has_numbers,
    has_texts,
    numbers,
    tags_json,
    texts,
    times,
    without_text,
)
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable
from kyc_pipeline.landing.zone import ManifestFile

_TEXTS: Final = ("STRING", "JSON", "ENUM", "NONE")
"""Logical types of byte arrays that may be read as dictionaries."""
_SMALL_VALUE: Final = 64
"""Bytes of a value of fixed length, such as a UUID or a decimal, of which many may be in memory."""
_SPARK: Final = b"org.apache.spark.version"


def read_parquet(path: ManifestFile, ignored: Counter[str], layout: Layout) -> Iterator[pa.Table]:
    """Yields the chunks of a Parquet file."""
    try:
        # INT96 has no years after 2262 in nanoseconds.
        with path.open("rb") as source, pq.ParquetFile(source, pre_buffer=False) as file:
            names = {name: layout.column_of(name) for name in file.schema_arrow.names}
            layout.check_header([names[name] for name in file.schema_arrow.names], path)
            texts_of, is_dense = _check_columns(file, path, layout)
        with (
            path.open("rb") as source,
            pq.ParquetFile(
                source,
                coerce_int96_timestamp_unit="us",
                read_dictionary=texts_of,
                pre_buffer=False,  # it would keep all row groups, and read ahead in other threads
            ) as file,
        ):
            used = {name: column for name, column in names.items() if layout.is_used(column)}
            in_utc = _int96_columns_of_spark(file, layout)
            total = 0
            for batch in _of_chunk_size(_batches(file, list(used), is_dense), path):
                rows = pa.array(np.arange(total + 1, total + 1 + batch.num_rows, dtype=np.int64))
                total += batch.num_rows
                columns = {column: batch.column(name) for name, column in used.items()}
                yield _typed_chunk(columns, rows, in_utc, path, layout)
            for column in names:
                if column not in used:
                    count_ignored(ignored, column, total)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of the storage; those of the content have no number
        raise ManifestUnreadable(
            path,
            f"is not a readable Parquet file ({type(error).__name__}): write it again, without encryption",
        ) from error


def _check_columns(file: pq.ParquetFile, path: ManifestFile, layout: Layout) -> tuple[list[str], bool]:
    """The used columns to read as dictionaries, and whether to read a few rows at a time.

    The latter if another used column may hold long values in many rows. Raises :class:`ManifestUnreadable` if
    a column or a value is huge.
    """
    metadata, dictionaries, is_dense = file.metadata, [], False
    for index in range(len(file.schema)):
        column = file.schema.column(index)
        names = (column.path.partition(".")[0], column.path)
        if not any(layout.is_used(layout.column_of(name)) for name in names):
            continue
        if (column.length or 0) > MAX_ROW_BYTES:
            raise _too_long(path)  # Arrow makes room for such a value even where it is absent
        for group in range(metadata.num_row_groups):
            if metadata.row_group(group).column(index).total_uncompressed_size > MAX_COLUMN_BYTES:
                raise ManifestUnreadable(
                    path,
                    f"has more than {MAX_COLUMN_BYTES} bytes of a column in a row group: write smaller ones",
                )
        kind = file.schema_arrow.field(column.path).type if column.path in file.schema_arrow.names else None
        is_text = column.physical_type == "BYTE_ARRAY" and column.logical_type.type in _TEXTS
        if kind is None:
            is_dense = True
        elif is_text and not isinstance(kind, pa.BaseExtensionType):
            dictionaries.append(column.path)
            # Arrow reads no dictionary from it, and its texts may share most of their bytes.
            is_dense = is_dense or _is_delta_encoded(metadata, index)
        else:
            is_dense = is_dense or not _is_compact(kind)
    return [] if is_dense else dictionaries, is_dense


def _is_compact(kind: pa.DataType) -> bool:
    """Whether many rows of a column take little memory, whatever its values are."""
    if isinstance(kind, pa.BaseExtensionType):
        return _is_compact(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_null(kind):
        return True
    return _has_width(kind) and kind.bit_width <= 8 * _SMALL_VALUE


def _has_width(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_primitive, pa.types.is_decimal, pa.types.is_fixed_size_binary)
    )


def _batches(file: pq.ParquetFile, names: list[str], is_dense: bool) -> Iterator[pa.RecordBatch]:
    """The rows as Arrow reads them."""
    if not is_dense:
        yield from file.iter_batches(CHUNK_ROWS, columns=names)
        return
    for group in range(file.metadata.num_row_groups):
        # Arrow reads no batch from two groups if a category is in a map or struct: each has its dictionary.
        yield from file.iter_batches(_dense_rows(file, group, names), row_groups=[group], columns=names)


def _dense_rows(file: pq.ParquetFile, group: int, names: list[str]) -> int:
    """How many rows to unpack at once.

    Each value may be as long as its column in the file; all rows are assumed to have equally many values.
    """
    metadata = file.metadata.row_group(group)
    columns = (metadata.column(index) for index in range(metadata.num_columns))
    longest = sum(
        column.total_uncompressed_size * max(1, column.num_values // max(1, metadata.num_rows))
        for column in columns
        if any(f"{column.path_in_schema}.".startswith(f"{name}.") for name in names)
    )
    return min(DENSE_ROWS, max(MIN_DENSE_ROWS, MAX_COLUMN_BYTES // max(1, longest)))


def _is_delta_encoded(metadata: Any, index: int) -> bool:
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    return any("DELTA" in encoding for group in groups for encoding in group.column(index).encodings)


def _of_chunk_size(batches: Iterable[pa.RecordBatch], path: ManifestFile) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at most `CHUNK_ROWS`, with about `CHUNK_BYTES` of text."""
    pending: list[pa.RecordBatch] = []
    rows = size = 0
    for part, part_bytes in itertools.chain.from_iterable(_parts(batch, path) for batch in batches):
        if pending and (rows + part.num_rows > CHUNK_ROWS or size + part_bytes > CHUNK_BYTES):
            yield _joined(pending)
            pending, rows, size = [], 0, 0
        pending.append(part)
        rows, size = rows + part.num_rows, size + part_bytes
    if pending:
        yield _joined(pending)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    (batch,) = pa.Table.from_batches(batches).combine_chunks().to_batches() if len(batches) > 1 else batches
    return batch


def _too_long(path: ManifestFile) -> ManifestUnreadable:
    return ManifestUnreadable(path, f"has a row of more than {MAX_ROW_BYTES} bytes")


def _parts(batch: pa.RecordBatch, path: ManifestFile) -> Iterator[tuple[pa.RecordBatch, int]]:
    """The rows of a batch in parts of about `CHUNK_BYTES`, with their bytes."""
    sizes = sum((_bytes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64))
    if sizes.size and sizes.max() > MAX_ROW_BYTES:
        raise _too_long(path)
    bounds = np.flatnonzero(np.diff(np.cumsum(sizes) // CHUNK_BYTES)) + 1
    for start, stop in itertools.pairwise([0, *bounds.tolist(), batch.num_rows]):
        yield batch.slice(start, stop - start), int(sizes[start:stop].sum())


def _bytes(array: Any) -> Any:
    """The bytes of each row (a NumPy array of int64)."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _bytes(array.storage)
    if pa.types.is_dictionary(kind):
        lengths = _bytes(array.dictionary)
        indices = array.indices
        found = lengths[indices.fill_null(0).to_numpy(zero_copy_only=False)] if len(lengths) else 0
        return np.where(indices.is_valid().to_numpy(zero_copy_only=False), found, 0)
    if pa.types.is_map(kind):
        sums = np.concatenate(([0], np.cumsum(_bytes(array.keys) + _bytes(array.items))))
        return np.diff(sums[array.offsets.to_numpy(zero_copy_only=False)])
    if pa.types.is_struct(kind):
        return sum((_bytes(column) for column in array.flatten()), np.zeros(len(array), np.int64))
    if pa.types.is_nested(kind):  # lists
        sums = np.concatenate(([0], np.cumsum(_bytes(array.flatten()))))
        counts = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        return np.diff(sums[np.concatenate(([0], np.cumsum(counts)))])
    if pa.types.is_null(kind):
        return np.zeros(len(array), np.int64)
    if _has_width(kind):
        return np.full(len(array), -(-kind.bit_width // 8), np.int64)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        array = array.cast(pa.large_binary())
    return pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _int96_columns_of_spark(file: pq.ParquetFile, layout: Layout) -> set[str]:
    """INT96 has no time zone, but Spark writes UTC; other tools write local time."""
    if _SPARK not in (file.metadata.metadata or {}):
        return set()
    columns = (file.schema.column(index) for index in range(len(file.schema)))
    return {layout.column_of(column.path) for column in columns if column.physical_type == "INT96"}


def _typed_chunk(
    columns: Mapping[str, ArrowColumn],
    rows: ArrowColumn,
    in_utc: set[str],
    path: ManifestFile,
    layout: Layout,
) -> pa.Table:
    found: dict[str, ArrowColumn] = {}
    malformed = pa.nulls(len(rows), pa.string())
    for name, array in columns.items():
        kind = array.type
        if name == "tags" and (pa.types.is_map(kind) or pa.types.is_struct(kind)):
            found[name] = tags_json(array)
        elif name == layout.time and pa.types.is_timestamp(kind):
            found[name] = times(array.cast(pa.timestamp(kind.unit, "UTC")) if name in in_utc else array)
        elif name == layout.number and has_numbers(kind):
            found[name] = numbers(array)
        else:
            is_allowed = has_texts(kind) and (name.startswith(TAG_PREFIX) or not pa.types.is_date(kind))
            if not is_allowed and array.null_count < len(array):
                # Without the names of a struct's fields and of a time zone, which may be data of a person.
                outer = str(kind).partition("<")[0].partition("[")[0]
                raise ManifestUnreadable(
                    path, f"has the column {layout.shown(name)} of type {outer}: it must be text"
                )
            found[name] = texts(array)
            problem = layout.must_be_text(name) + (
                " or a date in the years 0 to 9999" if pa.types.is_date(kind) else " in UTF-8"
            )
            malformed = pc.if_else(without_text(array, found[name]), problem, malformed)
    return layout.chunk_of(found, rows, malformed)
