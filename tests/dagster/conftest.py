"""A pipeline over temporary folders, against the simulator over HTTP."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kyc_pipeline.cli import backfill, dagster_home, main, publish
from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.tables import TABLES
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from tests import quick_dagster

TOKEN = "test-token"
DAILY = [dg.AssetKey(table.name) for table in TABLES]
"""The lake's assets. A run of them alone takes a quarter of the time of one that publishes too."""


def make_settings(folder: Path, url: str, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "deepxl_base_url": url,
        "deepxl_api_token": TOKEN,
        "deepxl_requests_per_second": 0,
        "kyc_landing": folder / "landing",
        "kyc_lake": str(folder / "lake"),
        "kyc_ledger_url": f"sqlite:///{folder / 'ledger.sqlite'}",
        "kyc_warehouse": folder / "warehouse" / "kyc.duckdb",
        "kyc_report": folder / "report" / "index.html",
        "kyc_pseudonym_key": "0123456789abcdef" * 2,
    }
    return Settings(_env_file=None, **values | changes)


@pytest.fixture(scope="session", autouse=True)
def quick_storage() -> Iterator[None]:
    with quick_dagster.storage():
        yield


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with running_simulator(token=TOKEN, seed=7) as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, simulator: Simulator) -> Settings:
    return make_settings(tmp_path, simulator.url)


@pytest.fixture
def pipeline(settings: Settings) -> Pipeline:
    return Pipeline(settings)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """An instance in memory: these tests are about what Dagster records, not how it is stored."""
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def job(pipeline: Pipeline) -> dg.JobDefinition:
    return build_defs(pipeline).resolve_job_def("verify_and_publish")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_on_disk(
    tmp_path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command in an empty working directory; returns exit code, standard output and standard error.

    Keyword arguments are settings for one call. Dagster's home is on disk, which takes most of a run's time:
    use `run` for what does not concern it.
    """
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    environment = {
        "DAGSTER_HOME": str(home),
        "DEEPXL_BASE_URL": simulator.url,
        "DEEPXL_API_TOKEN": TOKEN,
        "DEEPXL_REQUESTS_PER_SECOND": "0",
        "KYC_LANDING": "landing",
        "KYC_LAKE": "lake",
        "KYC_LEDGER_URL": "sqlite:///ledger.sqlite",
        "KYC_WAREHOUSE": "warehouse/kyc.duckdb",
        "KYC_REPORT": "report/index.html",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **settings: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["kyc-pipeline", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def run(run_on_disk: Run, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command as `run_on_disk` does, but Dagster records in `instance`."""
    for module in (backfill, publish, dagster_home):  # erase imports it when it publishes
        monkeypatch.setattr(module, "open_instance", lambda: instance)
    return run_on_disk
