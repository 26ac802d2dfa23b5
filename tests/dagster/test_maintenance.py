"""The weekly clean-up, on a real instance on disk: what it deletes, and above all what it keeps."""

import fcntl
import os
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.tables import CURATED_TABLES, SUBMISSIONS, TABLES
from kyc_pipeline.ledger.leases import acquire_lease, release_lease, renew_lease
from kyc_pipeline.ledger.offload import offloaded_dates
from kyc_pipeline.ledger.upkeep import vacuum
from kyc_pipeline.orchestration.jobs import range_tags
from kyc_pipeline.orchestration.maintenance import delete_runs, remove_stale
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from tests.conftest import Landing

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
LATER = timedelta(days=1)
DAILY = [dg.AssetKey(table.name) for table in TABLES]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance on disk."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.get() as instance:
        yield instance


def test_runs_are_deleted_but_every_day_stays_materialized(
    landing: Landing, pipeline: Pipeline, stored: dg.DagsterInstance
) -> None:
    landing.day(DAY, 1)
    landing.day(NEXT_DAY, 1)
    job = build_defs(pipeline).resolve_job_def("verify_and_publish")

    def run(day: str) -> str:
        return job.execute_in_process(instance=stored, partition_key=day, asset_selection=DAILY).run_id

    superseded, newest, other_day = run(DAY), run(DAY), run(NEXT_DAY)
    home = Path(stored.root_directory)
    assert (home / "history" / "runs" / f"{superseded}.db").exists()
    assert delete_runs(stored, datetime.now(UTC) - LATER) == (0, 0)
    assert delete_runs(stored, datetime.now(UTC) + LATER) == (1, 2)
    assert {record.run_id for record in stored.get_runs()} == {newest, other_day}
    assert not (home / "history" / "runs" / f"{superseded}.db").exists()
    for asset in ("submissions", "verification_responses", "verifications"):
        assert stored.get_materialized_partitions(dg.AssetKey(asset)) == {DAY, NEXT_DAY}


def test_the_job_runs_its_steps_in_order(pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
    job = build_defs(pipeline).resolve_job_def("maintenance")
    result = job.execute_in_process(instance=instance)
    assert result.success
    assert [event.step_key for event in result.get_step_success_events()] == [
        "prune_runs",
        "offload_responses",
        "vacuum_ledger",
        "remove_stale_files",
    ]


def offload(pipeline: Pipeline, instance: dg.DagsterInstance) -> dict[str, object]:
    """The figures of the step, in the job `maintenance`."""
    result = build_defs(pipeline).resolve_job_def("maintenance").execute_in_process(instance=instance)
    [output] = [
        event.step_output_data
        for event in result.all_events
        if event.is_successful_output and event.step_key == "offload_responses"
    ]
    return {name: value.value for name, value in output.metadata.items()}


def test_the_responses_of_finished_days_leave_the_ledger(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance, simulator: Simulator
) -> None:
    pipeline = Pipeline(settings.model_copy(update={"kyc_offload_after_days": 30}))
    recent = (datetime.now(UTC).date() - timedelta(days=30)).isoformat()
    days = [DAY, NEXT_DAY, "2024-09-10", "2024-09-11", recent]
    for day in days:
        landing.day(day, 2)
    job = build_defs(pipeline).resolve_job_def("verify_and_publish")

    def run(day: str, *assets: dg.AssetKey, last: str | None = None) -> None:
        assert job.execute_in_process(
            instance=instance, tags=range_tags(day, last or day), asset_selection=[*assets] or DAILY
        ).success

    run(DAY, last=NEXT_DAY)
    run(recent)
    run("2024-09-10", *(dg.AssetKey(name) for name in ("submissions", "verification_responses")))
    landing.day(NEXT_DAY, 3)  # a row that nobody has sent yet
    run(NEXT_DAY, dg.AssetKey("submissions"), dg.AssetKey("rejected_submissions"))

    assert offload(Pipeline(settings), instance) == {}, "off by default"
    assert offload(pipeline, instance) == {"days": 1, "responses": 2, "kept": 0}
    with pipeline.open_ledger() as ledger:
        assert offloaded_dates(ledger) == {DAY}, "the others are not flattened from their present rows"
        lease = acquire_lease(ledger, "2024-09-10", "another")
        run("2024-09-10", *(key for key in DAILY if key.path[-1] in {table.name for table in CURATED_TABLES}))
        assert offload(pipeline, instance) == {"days": 0, "responses": 0, "kept": 0}, "a run has the day"
        release_lease(ledger, lease)
    run(NEXT_DAY)
    assert offload(pipeline, instance) == {"days": 2, "responses": 5, "kept": 0}
    calls = simulator.received.total()
    run(DAY, last=NEXT_DAY)
    assert simulator.received.total() == calls


def free_pages(pipeline: Pipeline) -> int:
    with pipeline.open_ledger() as ledger:
        file = ledger.file
    assert file is not None
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute("PRAGMA freelist_count").fetchone()[0])
    finally:
        connection.close()


def test_the_ledgers_free_pages_are_returned_to_the_disk(
    landing: Landing,
    pipeline: Pipeline,
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    simulator: Simulator,
) -> None:
    landing.day(DAY, 3)
    job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY)
    with pipeline.open_ledger() as ledger:
        file = ledger.file
        assert file is not None
        ledger.close()
        connection = sqlite3.connect(file)
        connection.execute("CREATE TABLE ballast (body)")
        connection.executemany("INSERT INTO ballast VALUES (?)", [(b"x" * 4000,)] * 5000)
        connection.execute("DROP TABLE ballast")
        connection.commit()
        connection.close()
        assert free_pages(pipeline) > 4000
        size = file.stat().st_size
        assert "pages free" in vacuum(ledger)
        assert file.stat().st_size < size / 10
    assert free_pages(pipeline) == 0
    assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY).success
    assert simulator.received.total() == 3


def test_a_ledger_in_use_stays_usable(pipeline: Pipeline) -> None:
    with pipeline.open_ledger() as ledger, pipeline.open_ledger() as another:
        assert vacuum(ledger) == "there is no ledger yet"
        assert not ledger.exists()
        lease = acquire_lease(ledger, DAY, "a-run")
        with ledger.read() as reader:
            reader.exec_driver_sql("SELECT count(*) FROM submissions")
            assert "pages free" in vacuum(another)
        assert renew_lease(ledger, lease)


def test_stale_files_are_removed_and_files_in_use_stay(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(settings)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    pipeline.lake.write(SUBMISSIONS, DAY, [])
    folder = Path(pipeline.lake.path(SUBMISSIONS, DAY)).parent
    dead = 2**22 + 1  # above the largest process id of Linux
    stale = [
        folder / f".draft-{dead}-{secrets.token_hex(4)}",
        Path(settings.kyc_warehouse).with_name(f".draft-{dead}-kyc.duckdb"),
    ]
    in_use = [folder / f".draft-{dead}-{secrets.token_hex(4)}", scratch / "someone-elses"]
    for path in (*stale, *in_use):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    old_scratch, new_scratch = scratch / "kyc-scratch-old", scratch / "kyc-scratch-new"
    for path in (old_scratch, new_scratch):
        path.mkdir()
        (path / "rows.parquet").write_bytes(b"half")
    long_ago = time.time() - 7 * 86_400
    for path in (*stale, *in_use, old_scratch):
        os.utime(path, (long_ago, long_ago))
    with open(in_use[0], "rb") as draft:  # locked as by its writer
        fcntl.flock(draft, fcntl.LOCK_EX)
        assert remove_stale(pipeline, time.time() - 86_400) == 2
    assert not [path for path in (*stale, old_scratch) if path.exists()]
    assert all(path.exists() for path in (*in_use, new_scratch))
    assert pipeline.lake.exists(SUBMISSIONS, DAY)
