"""Fixtures for erasure: a pipeline with data of several people, on SQLite and on a real PostgreSQL server."""

import multiprocessing
import shutil
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from tests.conftest import Landing
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


@pytest.fixture(scope="module")
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a deployment that the module's function `fill` has filled."""
    root = tmp_path_factory.mktemp("template")
    with running_simulator(token="test-token", seed=7) as simulator:
        made = Deployment(root, simulator.url)
        request.module.fill(Landing(root / "landing"), made)
        made.ledger.close()
    return root


@pytest.fixture
def filled(template: Path, deployment: Deployment) -> Deployment:
    """The deployment as `fill` leaves it, in a tenth of the time: a copy of the template."""
    shutil.copytree(template, deployment.root, dirs_exist_ok=True)
    return deployment


@pytest.fixture(params=["sqlite", "postgres"])
def any_deployment(
    request: pytest.FixtureRequest, tmp_path: Path, landing: Any, simulator: Simulator
) -> Iterator[Deployment]:
    """A deployment on each database."""
    ledger_url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    made = Deployment(tmp_path, simulator.url, ledger_url)
    yield made
    made.ledger.close()


@pytest.fixture
def any_filled(request: pytest.FixtureRequest, landing: Any, any_deployment: Deployment) -> Deployment:
    """The deployment on each database as the module's function `fill` leaves it."""
    if any_deployment.ledger_url:
        request.module.fill(landing, any_deployment)
    else:
        shutil.copytree(request.getfixturevalue("template"), any_deployment.root, dirs_exist_ok=True)
    return any_deployment


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes quickly: they fork from a server that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kyc_pipeline.verify.engine", "kyc_pipeline.erasure.remove"])
    return context
