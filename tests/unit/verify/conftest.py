"""Fixtures of the verify tests: a world whose ledger is on SQLite, then on PostgreSQL."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from tests.unit.verify.world import TOKEN, World


@pytest.fixture
def world(tmp_path: Path, ledger_url: str) -> Iterator[World]:
    """A world on each database."""
    made = World(tmp_path, ledger_url=ledger_url)
    yield made
    made.ledger.close()


@pytest.fixture
def sqlite_world(tmp_path: Path) -> Iterator[World]:
    """A world on SQLite only, for tests that do not depend on the database."""
    made = World(tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes quickly: they fork from a server that has already done the slow imports."""
    context = multiprocessing.get_context("forkserver")
    # pyarrow imports pandas when it first converts Python values.
    context.set_forkserver_preload(
        ["kyc_pipeline.verify.engine", "alembic.command", "pandas", "pyarrow.compute", "psycopg"]
    )
    return context


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with running_simulator(token=TOKEN) as running:
        yield running


@pytest.fixture
def paid(tmp_path: Path, simulator: Simulator) -> World:
    """A world on SQLite whose first day is paid for."""
    world = World(tmp_path, simulator.url)
    world.submit("a", "b")
    world.verify()
    world.ledger.close()
    return world
