"""pyarrow calls the handler of odd rows in a thread of its own: none is lost, and no line counts twice."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest

from kyc_pipeline.ingest.formats.csv_rows import CsvRows, TextStream

FIRST_ODD, ODD_ROWS = 10_000_001, 20_000
BATCH_ROWS = 2_000
COLUMNS = ["submission_id", "id_file", "selfie_file"]


@pytest.fixture(autouse=True)
def threads_switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def _numbers(chunks: Iterator[pa.Table]) -> list[Any]:
    return [number for chunk in chunks for number in chunk["manifest_row"].to_pylist()]


def test_no_odd_row_is_lost_while_another_thread_reads_ahead(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    stream = TextStream(f"{','.join(COLUMNS)}\n", iter(()), ",", path, 1)
    rows = CsvRows(path, stream, ",", COLUMNS, COLUMNS, len(COLUMNS))

    def read_ahead() -> None:
        for number in range(FIRST_ODD, FIRST_ODD + ODD_ROWS):
            # Each second row can be repaired: its surplus cells are empty.
            text, cells = (f"S{number},id.jpg", 2) if number % 2 else (f"S{number},id.jpg,selfie.png,,", 5)
            rows(pacsv.InvalidRow(len(COLUMNS), cells, number + 1, text))

    thread = threading.Thread(target=read_ahead)
    batch = [pa.array(["x" * 50] * BATCH_ROWS)] * len(COLUMNS)
    good: list[int] = []
    odd: list[int] = []
    thread.start()
    while thread.is_alive():
        good += _numbers(rows.good(batch))
        odd += _numbers(rows.others())
    thread.join()
    odd += _numbers(rows.others())
    assert sorted(odd) == list(range(FIRST_ODD, FIRST_ODD + ODD_ROWS))
    assert good == list(range(1, len(good) + 1))
    assert rows.lines == 1 + ODD_ROWS + len(good)
