"""A lake, and the warehouse that is built from it."""

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kyc_pipeline.analyze.build import _Build, build, list_partitions
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.sql_models import steps_for
from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.nasty import Nasty

Build = Callable[..., duckdb.DuckDBPyConnection]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture(scope="session")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nasty]:
    """A warehouse with every oddity, and the same rows as frames; built once."""
    with Nasty.build(tmp_path_factory.mktemp("nasty")) as nasty:
        yield nasty


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The warehouse of an empty lake, with settings that name a tag."""
    folder = tmp_path_factory.mktemp("empty")
    inputs = {"KYC_DIMENSIONS": "country"}
    build(Lake(str(folder / "lake")), folder / "kyc.duckdb", run_id="run", inputs=inputs)
    return folder / "kyc.duckdb"


@pytest.fixture
def connections() -> Iterator[list[duckdb.DuckDBPyConnection]]:
    """What a test opens, closed at its end."""
    opened: list[duckdb.DuckDBPyConnection] = []
    yield opened
    for connection in opened:
        connection.close()


@pytest.fixture
def built(lake: Lake, tmp_path: Path, connections: list[duckdb.DuckDBPyConnection]) -> Build:
    """Builds `lake` and gives a connection to the result."""

    def make(
        price: Decimal | None = None,
        *,
        run_id: str = "run",
        previous: Path | None = None,
        inputs: dict[str, str | None] | None = None,
        **choices: Any,
    ) -> duckdb.DuckDBPyConnection:
        draft = tmp_path / f"draft-{len(connections)}.duckdb"
        choice = Choices(price, **choices)
        build(lake, draft, run_id=run_id, choices=choice, previous=previous, inputs=inputs)
        connections.append(duckdb.connect(draft, read_only=True))
        return connections[-1]

    return make


@pytest.fixture
def computed(lake: Lake, connections: list[duckdb.DuckDBPyConnection]) -> Build:
    """Computes single tables of the warehouse, in a fifth of a build's time."""

    def make(*tables: str, **choices: Any) -> duckdb.DuckDBPyConnection:
        connections.append(duckdb.connect())
        run = _Build(connections[-1], lake, list_partitions(lake), Choices(**choices), None, None)
        run.attach()
        run._run_each(steps_for({table: f"FROM {table}" for table in tables}))
        return connections[-1]

    return make
