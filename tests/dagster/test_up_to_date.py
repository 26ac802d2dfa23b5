"""Nothing new, nothing done: what a second run builds, what Dagster shows, and what makes it build again."""

from collections import Counter
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import TABLES
from kyc_pipeline.orchestration import publication
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from tests.conftest import Landing
from tests.dagster.conftest import Run

DAY = "2024-09-08"
RANGE = ("--from", DAY, "--to", DAY)
UP_TO_DATE = "warehouse and report are up to date"
MATERIALIZATION = dg.DagsterEventType.ASSET_MATERIALIZATION
OBSERVATION = dg.DagsterEventType.ASSET_OBSERVATION
FILES = ("warehouse/kyc.duckdb", "report/index.html")


def build_of(folder: Path) -> str:
    """The run that built the published warehouse."""
    with duckdb.connect(folder / FILES[0], read_only=True) as warehouse:
        [(run_id,)] = warehouse.execute("SELECT run_id FROM build_info").fetchall()
    return str(run_id)


def inodes(folder: Path) -> list[int]:
    """They change when a file is replaced."""
    lake = Lake(str(folder / "lake"))
    return [Path(path).stat().st_ino for path in (*FILES, *(lake.path(table, DAY) for table in TABLES))]


def events(
    instance: dg.DagsterInstance, run_id: str, kind: dg.DagsterEventType = MATERIALIZATION
) -> Counter[str]:
    """The run's events of this kind, by asset."""
    happened = [entry.dagster_event for entry in instance.all_logs(run_id, of_type=kind)]
    return Counter(event.asset_key.to_user_string() for event in happened if event and event.asset_key)


def last_flattened(instance: dg.DagsterInstance) -> str:
    """The run that last wrote `verifications`."""
    last = instance.get_latest_materialization_event(dg.AssetKey("verifications"))
    assert last
    return last.run_id


def checks(instance: dg.DagsterInstance, run_id: str) -> dict[tuple[str, str], tuple[bool, object]]:
    """The results of the run's checks."""
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    results = [entry.dagster_event.asset_check_evaluation_data for entry in entries if entry.dagster_event]
    return {
        (each.asset_key.to_user_string(), each.check_name): (each.passed, each.metadata) for each in results
    }


def test_only_what_is_new_is_built(
    landing: Landing,
    run: Run,
    simulator: Simulator,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    landing.day(DAY, 3)
    assert run("backfill", "--no-publish", *RANGE, "--max-calls", "2")[0] == 3
    code, out, _ = run("backfill", *RANGE)  # the third submission arrives late
    assert code == 0
    assert UP_TO_DATE not in out
    before, first = inodes(tmp_path), build_of(tmp_path)
    assert {"warehouse", "report", "pass_rates"} <= events(instance, first).keys()
    code, out, _ = run("backfill", *RANGE)
    assert code == 0
    assert UP_TO_DATE in out
    assert inodes(tmp_path) == before
    assert simulator.received.total() == 3
    for asset in ("warehouse", "report"):
        [seen] = instance.fetch_observations(dg.AssetKey(asset), limit=9).records
        observed = seen.event_log_entry.asset_observation
        assert observed
        assert observed.metadata["built_by"].value == first
        built = instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert built
        assert built.run_id == first
    assert run("publish")[1].splitlines()[0] == UP_TO_DATE

    # A run of the whole job observes what is up to date, and keeps the results of the checks.
    job = build_defs(Pipeline(Settings(_env_file=None))).resolve_job_def("verify_and_publish")

    def run_job() -> str:
        result = job.execute_in_process(instance=instance, partition_key=DAY)
        assert result.success
        return result.run_id

    second = run_job()
    assert not {"warehouse", "report", "pass_rates"} & events(instance, second).keys()
    for asset in ("warehouse", "report", "verifications", "contract_drift"):
        assert events(instance, second, OBSERVATION)[asset] == 1, asset
    flattened = last_flattened(instance)
    assert checks(instance, second) == checks(instance, flattened) | checks(instance, first)
    # The freshness policy counts materializations only, so a day's first publication is one.
    with monkeypatch.context() as patch:
        patch.setattr(publication, "midnight", lambda: float("inf"))
        recorded = run_job()
    assert {"warehouse", "report", "pass_rates"} <= events(instance, recorded).keys()
    last = instance.get_latest_materialization_event(dg.AssetKey("pass_rates"))
    assert last
    assert last.asset_materialization
    assert last.asset_materialization.metadata["dagster/row_count"].value
    assert build_of(tmp_path) == first
    # A later step of the same run must not be skipped because an earlier one had nothing to do.
    (tmp_path / FILES[1]).unlink()
    third = run_job()
    assert events(instance, third, OBSERVATION)["verifications"] == 1
    assert {"warehouse", "report"} <= events(instance, third).keys()
    assert build_of(tmp_path) == third

    # All is built again on request.
    assert UP_TO_DATE not in run("backfill", *RANGE, "--force")[1]
    forced = build_of(tmp_path)
    assert forced != third
    assert {"warehouse", "report"} <= events(instance, forced).keys()
    assert last_flattened(instance) != flattened
    assert simulator.received.total() == 3
    # The report alone is drawn only if it is not up to date.
    force = {"ops": {"report": {"config": {"force": True}}}}
    for config, kind in (({}, OBSERVATION), (force, MATERIALIZATION)):
        alone = job.execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey("report")], run_config=config
        )
        assert events(instance, alone.run_id, kind)["report"] == 1
