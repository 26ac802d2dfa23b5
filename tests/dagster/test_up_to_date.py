"""Nothing new, nothing done: what a second run builds, what Dagster shows, and what makes it build again."""

from collections import Counter
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import TABLES
from kyc_pipeline.orchestration import publication
from kyc_pipeline.settings import Settings
from tests.conftest import Landing
from tests.dagster.conftest import Run

DAY = "2024-09-08"
RANGE = ("--from", DAY, "--to", DAY)
UP_TO_DATE = "warehouse and report are up to date"
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


def test_the_command_line_builds_only_what_is_new(
    landing: Landing, run: Run, simulator: Simulator, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    landing.day(DAY, 3)
    assert run("backfill", "--no-publish", *RANGE, "--max-calls", "2")[0] == 3
    code, out, _ = run("backfill", *RANGE)  # the third submission arrives late
    assert code == 0
    assert UP_TO_DATE not in out
    before, first = inodes(tmp_path), build_of(tmp_path)
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
    assert UP_TO_DATE not in run("backfill", *RANGE, "--force")[1]
    assert build_of(tmp_path) != first
    assert simulator.received.total() == 3


def events(result: dg.ExecuteInProcessResult, kind: dg.DagsterEventType) -> Counter[str]:
    return Counter(
        event.asset_key.to_user_string()
        for event in result.all_events
        if event.event_type is kind and event.asset_key
    )


def test_a_run_of_dagster_observes_what_is_up_to_date_and_keeps_the_results_of_the_checks(
    landing: Landing,
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    landing.day(DAY, 2)
    materialization, observation = (
        dg.DagsterEventType.ASSET_MATERIALIZATION,
        dg.DagsterEventType.ASSET_OBSERVATION,
    )

    def run(**config: object) -> dg.ExecuteInProcessResult:
        result = job.execute_in_process(instance=instance, partition_key=DAY, run_config={"ops": config})
        assert result.success
        return result

    def checks(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], tuple[bool, object]]:
        return {
            (each.asset_key.to_user_string(), each.check_name): (each.passed, each.metadata)
            for each in result.get_asset_check_evaluations()
        }

    first, second = run(), run()
    assert not events(first, observation)["warehouse"]
    assert {"warehouse", "report", "pass_rates"} <= events(first, materialization).keys()
    assert not {"warehouse", "report", "pass_rates"} & events(second, materialization).keys()
    for asset in ("warehouse", "report", "verifications", "contract_drift"):
        assert events(second, observation)[asset] == 1, asset
    assert checks(second) == checks(first)
    # The freshness policy counts materializations only, so a day's first publication is one.
    with monkeypatch.context() as patch:
        patch.setattr(publication, "midnight", lambda: float("inf"))
        recorded = run()
    assert {"warehouse", "report", "pass_rates"} <= events(recorded, materialization).keys()
    last = instance.get_latest_materialization_event(dg.AssetKey("pass_rates"))
    assert last
    assert last.asset_materialization
    assert last.asset_materialization.metadata["dagster/row_count"].value
    # A later step of the same run must not be skipped because an earlier one had nothing to do.
    Path(settings.kyc_report).unlink()
    third = run()
    assert events(third, observation)["verifications"] == 1
    assert {"warehouse", "report"} <= events(third, materialization).keys()
    force = {"config": {"force": True}}
    forced = run(flatten=force, build_warehouse=force, report=force)
    assert not events(forced, observation)["verifications"]
    assert {"warehouse", "report"} <= events(forced, materialization).keys()
    # The report alone is drawn only if it is not up to date.
    for config, kind in (({}, observation), ({"ops": {"report": force}}, materialization)):
        alone = job.execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey("report")], run_config=config
        )
        assert events(alone, kind)["report"] == 1
