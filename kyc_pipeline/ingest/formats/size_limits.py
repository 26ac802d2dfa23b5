"""How much of a manifest is held in memory at once, and how much is too much."""

from typing import Final

CHUNK_ROWS: Final = 16_384
CHUNK_BYTES: Final = 1 << 22
DENSE_ROWS: Final = 64
"""Rows of a Parquet file without dictionaries that are unpacked at once; fewer if its columns are large."""
MIN_DENSE_ROWS: Final = 4
"""Fewer would take too long; one row may be as long as its columns in the row group."""
BLOCK_BYTES: Final = 1 << 20
"""Bytes per read."""
MAX_ROW_BYTES: Final = BLOCK_BYTES
"""A longer row suggests that a quote or a line end is missing. In a CSV, one up to twice as long may pass."""
MAX_COLUMNS: Final = 500
MAX_CHUNK_CELLS: Final = 1 << 20
"""Rows times distinct keys of a chunk of JSON Lines, since each line may have different keys."""
MAX_TEXT_BYTES: Final = 2_000_000_000
"""Of a CSV or JSON Lines file, unpacked: enough for ten million rows."""
MAX_ROWS: Final = 10_000_000
MAX_MALFORMED_ROWS: Final = 100_000
"""A file with more is not a manifest. Each malformed row costs far more than a good one."""
MAX_COLUMN_BYTES: Final = 256_000_000
"""Of a used column in one row group of a Parquet file, unpacked: one page may hold it all."""
MAX_WORKBOOK_BYTES: Final = 64_000_000
"""Unpacked; real workbooks have 500 bytes per row."""
MAX_WORKBOOK_MEMORY: Final = 320_000_000
"""Bytes that openpyxl keeps at once, by the estimate in `xlsx_parts.py`."""
MAX_WORKBOOK_PARTS: Final = 10_000
MAX_WORKBOOK_CELLS: Final = 10_000_000
"""Empty ones before a filled one included."""
MAX_IGNORED_NAMES: Final = 100
