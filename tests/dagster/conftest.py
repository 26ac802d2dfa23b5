"""A pipeline over temporary folders, against the simulator over HTTP."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log import in_memory
from dagster._core.storage.event_log.in_memory import InMemoryEventLogStorage

from kyc_pipeline.cli import backfill, dagster_home, main, publish
from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.tables import TABLES
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings

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
def migrations_are_read_once() -> Iterator[None]:
    """Dagster would read its 89 migrations for both databases of each new instance."""
    read = ScriptDirectory.from_config
    known: dict[str | None, ScriptDirectory] = {}

    def from_config(config: Config) -> ScriptDirectory:
        folder = config.get_main_option("script_location")
        if folder not in known:
            known[folder] = read(config)
        return known[folder]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", from_config)
        yield


@pytest.fixture(scope="session", autouse=True)
def engines_are_made_once() -> Iterator[None]:
    """Dagster would make one for each event that it stores on disk, and compile the same SQL each time."""
    known: dict[str, sqlalchemy.Engine] = {}

    def engine(url: str, **options: Any) -> sqlalchemy.Engine:
        if url not in known:
            known[url] = sqlalchemy.create_engine(url, **options)
        return known[url]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dagster._core.storage.event_log.sqlite.sqlite_event_log.create_engine", engine)
        yield


@pytest.fixture(scope="session", autouse=True)
def events_in_memory_have_one_connection() -> Iterator[None]:
    """Dagster would connect again for each access to them, and read the columns of a table for each event."""

    @contextmanager
    def connect(storage: InMemoryEventLogStorage) -> Iterator[sqlalchemy.Connection]:
        with storage._db_lock, storage._held_conn.begin():
            yield storage._held_conn

    for_any_thread = partial(sqlalchemy.create_engine, connect_args={"check_same_thread": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_memory, "create_engine", for_any_thread)
        patch.setattr(InMemoryEventLogStorage, "_connect", connect)
        patch.setattr(InMemoryEventLogStorage, "_has_asset_key_col_on_connection", lambda *_: True)
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
