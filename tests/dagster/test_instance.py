"""`dagster_home/dagster.yaml`, as Dagster reads it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from kyc_pipeline.cli.dagster_home import make_home
from kyc_pipeline.orchestration.jobs import CATCH_UP, NEW_DATA

FILE = Path(__file__).parents[2] / "dagster_home" / "dagster.yaml"


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    shutil.copy(FILE, tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as instance:
        yield instance


def test_dagster_applies_the_settings(instance: dg.DagsterInstance) -> None:
    assert not instance.telemetry_enabled
    assert not instance.nux_enabled
    assert instance.run_monitoring_enabled
    assert instance.run_monitoring_max_runtime_seconds > 0
    assert instance.run_retries_enabled
    assert not instance.run_retries_retry_on_asset_or_op_failure
    assert {"FRESHNESS_DAEMON", "ASSET", "MONITORING"} <= set(instance.get_required_daemon_types())


def test_a_new_home_has_the_same_settings(tmp_path: Path) -> None:
    make_home(tmp_path / "home")
    assert (tmp_path / "home" / "dagster.yaml").read_text() == FILE.read_text()
    (tmp_path / "home" / "dagster.yaml").write_text("mine")
    make_home(tmp_path / "home")
    assert (tmp_path / "home" / "dagster.yaml").read_text() == "mine"


def test_a_backfill_leaves_room_for_todays_run() -> None:
    concurrency = yaml.safe_load(FILE.read_text(encoding="utf-8"))["concurrency"]
    [backfills] = concurrency["runs"]["tag_concurrency_limits"]
    assert backfills["key"] == "dagster/backfill"
    assert backfills["limit"] < concurrency["pools"]["default_limit"]
    assert backfills["limit"] < concurrency["runs"]["max_concurrent_runs"]
    # In the queue, new data comes first; a backfill's runs have priority 0.
    assert int(NEW_DATA["dagster/priority"]) > int(CATCH_UP["dagster/priority"]) > 0
