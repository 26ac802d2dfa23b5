"""Parses manifest files: CSV, JSON Lines, Parquet or XLSX in, rows of text out.

One module reads each format (`csv`, `jsonl`, `parquet`, `xlsx`); `rows.py` validates the rows. `columns` says
what names mean, `typed_values` which values have a text. A file that cannot be read raises
:class:`ManifestUnreadable`. A row that cannot be split into fields is marked as *malformed* and does not stop
the others.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import pyarrow as pa

from kyc_pipeline.ingest.formats.columns import MALFORMED, SUBMISSION_ROWS, Layout
from kyc_pipeline.ingest.formats.csv import read_csv
from kyc_pipeline.ingest.formats.jsonl import read_jsonl
from kyc_pipeline.ingest.formats.parquet import read_parquet
from kyc_pipeline.ingest.formats.size_limits import MAX_MALFORMED_ROWS, MAX_ROWS
from kyc_pipeline.ingest.formats.text import is_unicode
from kyc_pipeline.ingest.formats.unreadable import (
    ManifestUnreadable,
    explained,
    fails_alone,
    require_few_malformed,
)
from kyc_pipeline.ingest.formats.xlsx import read_xlsx
from kyc_pipeline.landing.zone import ManifestFile

FormatReader: TypeAlias = Callable[[ManifestFile, Counter[str], Layout], Iterator[pa.Table]]

SUFFIXES: Final = ".csv, .tsv, .jsonl, .ndjson, .json, .parquet or .xlsx"
"""For messages."""
_READERS: Final[dict[str, FormatReader]] = {
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".tsv": read_csv,
    ".tsv.gz": read_csv,
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".ndjson": read_jsonl,
    ".ndjson.gz": read_jsonl,
    ".json": read_jsonl,
    ".json.gz": read_jsonl,
    ".parquet": read_parquet,
    ".xlsx": read_xlsx,
}


def read_manifest(
    path: ManifestFile,
    ignored: Counter[str],
    csv_encoding: str | None = None,
    layout: Layout = SUBMISSION_ROWS,
) -> Iterator[pa.Table]:
    """Yields the rows of a manifest as text, in chunks: memory does not grow with the file.

    Each chunk has the columns `manifest_row` (int64; 1 is the first data row), `malformed` (why the row could
    not be parsed, or null), all fields of `layout`, and the file's `tag.<name>` columns if `layout` has tags.
    An absent value is null.
    `ignored` counts the rows of each unused column. CSV files that are neither UTF-8 nor UTF-16 are in
    `csv_encoding`, or refused.
    Raises :class:`ManifestUnreadable`.
    """
    reader = reader_of(path)
    if reader is None:
        raise ManifestUnreadable(path, f"must be a {SUFFIXES} file")
    with fails_alone(path), explained(path):
        if reader is read_csv:
            chunks = read_csv(path, ignored, layout, csv_encoding)
        else:
            chunks = reader(path, ignored, layout)
        rows = malformed = 0
        for chunk in chunks:
            rows += chunk.num_rows
            malformed += chunk.num_rows - chunk[MALFORMED].null_count
            if rows > MAX_ROWS:
                raise ManifestUnreadable(path, f"has more than {MAX_ROWS} rows: split it")
            require_few_malformed(path, malformed, MAX_MALFORMED_ROWS)
            yield chunk


def needs_encoding(path: ManifestFile) -> bool:
    """Whether a manifest is a CSV that is neither UTF-8 nor UTF-16. Raises :class:`ManifestUnreadable`."""
    with fails_alone(path), explained(path):
        return reader_of(path) is read_csv and not is_unicode(path)


def reader_of(path: ManifestFile) -> FormatReader | None:
    name = path.name.lower()
    for suffix, reader in _READERS.items():
        if name.endswith(suffix):
            return reader
    return None
