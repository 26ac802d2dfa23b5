"""Labels through Dagster: the asset, its checks, its sensor, and the publication that uses them."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.storage import WHOLE, Lake
from kyc_pipeline.lake.tables import LABELS
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from tests.conftest import Landing
from tests.dagster.conftest import DAILY, Run

DAY = "2024-09-08"
LABEL_ASSETS = [dg.AssetKey("labels"), dg.AssetKey("rejected_labels")]
HEADER = "submission_id,label,source,decided_at\n"


def put(folder: Path, ids: list[str], label: str = "genuine", name: str = "a.csv") -> Path:
    path = folder / "landing" / "labels" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(HEADER + "".join(f"{each},{label},review,2024-10-01T10:00:00Z\n" for each in ids))
    return path


def tags(number: int) -> Mapping[str, str]:
    return {"customerId": str(number), "companyId": "COMP-001"}


def figures(warehouse: Path) -> list[Any]:
    with duckdb.connect(warehouse, read_only=True) as connection:
        return connection.execute(
            "SELECT genuine, fraud, weighted FROM error_rates WHERE check_group = 'verdict'"
        ).fetchall()


def test_labels_reach_the_warehouse_come_back_from_a_sample_and_leave_with_their_person(
    landing: Landing, run: Run, tmp_path: Path
) -> None:
    ids = landing.day(DAY, 12, tags)
    put(tmp_path, [*ids[:3], "never-sent", "not an id"])
    put(tmp_path, ids[3:5], "fraud", "b.csv")
    code, out, _ = run("backfill", "--from", DAY, "--to", DAY)
    assert code == 0
    assert "labels     6 accepted, 1 rejected: `kyc-pipeline rejected` shows them" in out.splitlines()
    warehouse = tmp_path / "warehouse" / "kyc.duckdb"
    assert figures(warehouse) == [(3, 2, False)]
    assert run("publish")[1].startswith("warehouse and report are up to date\n"), "and nothing about labels"

    code, out, _ = run("sample", "--n", "8", "--seed", "1")
    assert code == 0
    assert "8 of 12" in out
    with (tmp_path / "sample-1.csv").open(newline="") as source:
        rows = [
            row | {"label": "genuine", "decided_at": "2024-09-30T10:00:00Z"} for row in csv.DictReader(source)
        ]
    with (tmp_path / "landing" / "labels" / "sample.csv").open("w", newline="") as target:
        writer: Any = csv.DictWriter(target, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert "up to date" not in run("publish")[1], "new labels are a reason to publish"
    found = {weighted: genuine + fraud for genuine, fraud, weighted in figures(warehouse)}
    assert found[True] == 8
    labelled = {*ids[:5], *(row["submission_id"] for row in rows)}
    assert sum(found.values()) == len(labelled)

    assert run("erase", "--tag", "customerId=1")[0] == 0
    left = Lake(str(tmp_path / "lake")).read(LABELS, WHOLE)["submission_id"].to_pylist()
    assert set(left) == {*labelled, "never-sent"} - {ids[1]}
    assert sum(genuine + fraud for genuine, fraud, _ in figures(warehouse)) == len(labelled) - 1
    assert ids[1].encode() not in warehouse.read_bytes()
    code, out, _ = run("rejected")
    assert code == 0
    assert ["labels", "a.csv", "2", "erased_subject"] in [line.split() for line in out.splitlines()]


def test_a_warning_about_labels_is_printed_as_long_as_it_holds(
    landing: Landing, run: Run, tmp_path: Path
) -> None:
    put(tmp_path, ["a-1"])
    put(tmp_path, ["b-1"], name="b.parquet")  # no Parquet
    for is_built in (True, False):
        code, out, err = run("publish")
        assert (code, "up to date" in out) == (0, not is_built)
        assert "warning: every_file_read: 1 unreadable" in err


def test_the_asset_reports_what_it_read(
    landing: Landing, pipeline: Pipeline, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    put(tmp_path, ["a-1", "not an id"])
    job = (
        build_defs(pipeline).resolve_job_def("labels_and_publish").get_subset(asset_selection={*LABEL_ASSETS})
    )
    result = job.execute_in_process(instance=instance)
    (event, _) = result.get_asset_materialization_events()
    metadata = event.step_materialization_data.materialization.metadata
    counts = ("dagster/row_count", "received", "accepted", "rejected", "manifests")
    assert [metadata[name].value for name in counts] == [1, 2, 1, 1, 1]
    assert all(check.passed for check in result.get_asset_check_evaluations())

    put(tmp_path, ["b-1"], name="b.parquet")  # no Parquet
    (tmp_path / "landing" / "labels" / "notes.txt").write_text("Jane Roe")
    result = job.execute_in_process(instance=instance)
    failed = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert [check.check_name for check in failed] == ["every_file_read"]
    assert "notes" not in str(failed[0].description)
    again = job.execute_in_process(instance=instance)
    assert [c.passed for c in again.get_asset_check_evaluations()] == [
        c.passed for c in result.get_asset_check_evaluations()
    ], "a check does not turn green because nothing changed"


def test_a_landing_zone_that_is_away_stops_no_publication(
    landing: Landing, job: dg.JobDefinition, instance: dg.DagsterInstance, settings: Settings, tmp_path: Path
) -> None:
    ids = landing.day(DAY, 3, tags)
    put(tmp_path, ids)
    read = [*DAILY, *LABEL_ASSETS]
    assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=read).success
    (tmp_path / "landing").rename(tmp_path / "away")
    published = build_defs(Pipeline(settings)).resolve_job_def("labels_and_publish")
    result = published.execute_in_process(instance=instance)
    assert result.success
    failed = {check.check_name for check in result.get_asset_check_evaluations() if not check.passed}
    assert failed == {"every_file_read", "yesterday_is_included"}
    assert Lake(settings.kyc_lake).row_count(LABELS, WHOLE) == 3
    assert figures(Path(settings.kyc_warehouse)) == [(3, 0, False)]


def test_the_sensor_requests_a_run_once_the_files_are_complete(
    landing: Landing, pipeline: Pipeline, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    definitions = build_defs(pipeline)
    sensor, cursor = definitions.resolve_sensor_def("new_labels"), None

    def tick() -> list[str | None]:
        nonlocal cursor
        context = dg.build_sensor_context(
            instance, cursor, definitions=definitions, resources=definitions.resources
        )
        data = sensor.evaluate_tick(context)
        cursor = data.cursor
        return [request.run_key for request in data.run_requests or ()]

    assert tick() == [], "the first look"
    assert len(tick()) == 1, "even without labels: an empty table"
    path = put(tmp_path, ["a-1"])
    assert tick() == [], "it may still be being written"
    first = tick()
    assert len(first) == 1
    assert tick() == first, "Dagster starts a run key once"
    job = definitions.resolve_job_def("labels_and_publish").get_subset(asset_selection={*LABEL_ASSETS})
    assert job.execute_in_process(instance=instance).success
    assert tick() == []
    path.unlink()
    put(tmp_path, ["a-2"], name="b.csv")
    tick()
    assert tick() not in ([], first)


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
