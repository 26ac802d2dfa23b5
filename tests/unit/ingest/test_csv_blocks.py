"""A CSV is read in blocks: where they are cut changes nothing."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kyc_pipeline.ingest.formats import read_manifest, text
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable
from tests.effort import tries

WORDS = ["A1", "A22", "id.jpg", "é", "€" * 9, "x" * 200, "\ufdd0", "\ufdd1a"]
TEXTS = [*WORDS, "", " ", "a\rb", "a\nb", '5" x', 'a\r"']
QUOTED = ['"' + "a\n" * 80 + '"', '"a,b"', '"a\r\nb"', '"a\nb"', '"a\rb"', '"a""b"']
FAULTY = ['"a', 'a"', '"a"b', "\\N"]
CELLS = st.sampled_from([*TEXTS, *QUOTED] * 8 + FAULTY)
ROWS = st.lists(CELLS, max_size=7).map(",".join)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def read(path: Path) -> tuple[list[dict[str, Any]], Counter[str]] | None:
    """The rows by number; None if the file is refused: which of its faults is named depends on the blocks."""
    ignored: Counter[str] = Counter()
    try:
        chunks = list(read_manifest(path, ignored))
    except ManifestUnreadable:
        return None
    rows = [row for chunk in chunks for row in chunk.to_pylist()]
    return sorted(rows, key=lambda row: row["manifest_row"]), ignored


@settings(max_examples=tries(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, max_size=30), ENDS, st.lists(ENDS, max_size=1), st.integers(0, 60))
def test_where_a_csv_is_cut_into_blocks_changes_nothing(
    tmp_path: Path, rows: list[str], end: str, last_end: list[str], extra_bytes: int
) -> None:
    path = tmp_path / "a.csv"
    # The header and the first row of data decide the width, so the first block has both.
    start = f"submission_id,id_file,selfie_file,note{end}A0,id.jpg,selfie.png,{end}"
    ends = [end] * (len(rows) - len(last_end)) + last_end
    path.write_text(start + "".join(map(str.__add__, rows, ends)), newline="")
    with pytest.MonkeyPatch.context() as patch:
        whole = read(path)
        patch.setattr(text, "BLOCK_BYTES", len(start) + extra_bytes)
        assert read(path) == whole
