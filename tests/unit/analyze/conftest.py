"""A lake, and the warehouse that is built from it."""

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from kyc_pipeline.analyze.build import build
from kyc_pipeline.lake.storage import Lake

Build = Callable[..., duckdb.DuckDBPyConnection]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def built(lake: Lake, tmp_path: Path) -> Iterator[Build]:
    """Builds `lake` and gives a connection to the result, closed at the end of the test."""
    connections: list[duckdb.DuckDBPyConnection] = []

    def make(price: Decimal | None = None) -> duckdb.DuckDBPyConnection:
        draft = tmp_path / f"draft-{len(connections)}.duckdb"
        build(lake, draft, run_id="run", price_per_call=price)
        connections.append(duckdb.connect(draft, read_only=True))
        return connections[-1]

    yield make
    for connection in connections:
        connection.close()
