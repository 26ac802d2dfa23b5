"""Fixtures of the verify tests: a world whose ledger is SQLite, then PostgreSQL (a real server)."""

import itertools
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from postgres import PostgresServer, running_postgres
from world import World

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """A new, empty database."""
    return postgres.create_database(f"ledger{next(_numbers)}")


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a ledger that does not exist yet, on each database."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def world(tmp_path: Path, ledger_url: str) -> Iterator[World]:
    """A world on each database."""
    made = World(tmp_path, ledger_url=ledger_url)
    yield made
    made.ledger.close()


@pytest.fixture
def sqlite_world(tmp_path: Path) -> Iterator[World]:
    """A world on SQLite only, for what does not depend on the database."""
    made = World(tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes quickly: they fork from a server that has imported already what takes time."""
    context = multiprocessing.get_context("forkserver")
    # pyarrow imports pandas by itself, when it first makes rows of Python's values.
    context.set_forkserver_preload(
        ["kyc_pipeline.verify.engine", "alembic.command", "pandas", "pyarrow.compute", "psycopg"]
    )
    return context


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits until a condition holds; an error after half a minute."""
    import threading

    def wait(condition: Callable[[], bool]) -> None:
        tick = threading.Event()
        for _ in range(15_000):
            if condition():
                return
            tick.wait(0.002)
        raise AssertionError("the condition did not come true")

    return wait
