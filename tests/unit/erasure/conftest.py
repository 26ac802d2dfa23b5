"""Fixtures for erasure: a pipeline with data of several people, on SQLite and on a real PostgreSQL server."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from tests.unit.erasure.deployment import Deployment


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with running_simulator(token="test-token", seed=7) as server:
        yield server


@pytest.fixture
def deployment(tmp_path: Path, landing: Any, simulator: Simulator) -> Iterator[Deployment]:
    """A deployment whose ledger is SQLite."""
    made = Deployment(tmp_path, simulator.url)
    yield made
    made.ledger.close()


@pytest.fixture(params=["sqlite", "postgres"])
def any_deployment(
    request: pytest.FixtureRequest, tmp_path: Path, landing: Any, simulator: Simulator
) -> Iterator[Deployment]:
    """A deployment on each database."""
    ledger_url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    made = Deployment(tmp_path, simulator.url, ledger_url)
    yield made
    made.ledger.close()


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes quickly: they fork from a server that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kyc_pipeline.verify.engine", "kyc_pipeline.erasure.remove"])
    return context
