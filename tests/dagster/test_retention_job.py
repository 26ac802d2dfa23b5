"""The job `retention` reports what is due, and removes it only if a setting says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import kyc_pipeline
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.ingest.manifests import ingest_partition
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import load_settings

DAY = "2024-09-08"
MARK = "Zq7mark"
Run = Callable[..., tuple[int, str, str]]
RULES = {"KYC_RETAIN_DAYS": "365", "KYC_RETAIN_DOCUMENTS_DAYS": "30", "KYC_RETAIN_REJECTED_DAYS": "90"}


@pytest.fixture
def ended(landing: Any, run_on_disk: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """An ingested day: two people whose relationships ended, one under a hold, and a rejected row."""
    monkeypatch.setenv("KYC_PSEUDONYM_KEY", "0123456789abcdef" * 2)
    monkeypatch.setenv("PYTHONPATH", str(Path(kyc_pipeline.__file__).parents[1]))  # of the command
    theirs = landing.submission(f"{MARK}-0", 11, {"customerId": MARK})
    held = landing.submission("held", 20, {"customerId": "held"})
    lost = landing.submission(f"{MARK}-1", 30, {"customerId": "lost"}) | {"id_file": "lost.jpg"}
    landing.manifest(DAY, [theirs, held, lost])
    ingest_partition(landing=landing.root, lake=Lake("lake"), date=DAY)
    (landing.root / "relationships").mkdir()
    (landing.root / "relationships" / "ends.csv").write_text(
        f"tag.customerId,ended_at\n{MARK},2024-10-01\nheld,2024-10-01\n"
    )
    assert run_on_disk("legal-hold", "add", "--tag", "customerId=held", "--reason", "case 4/26")[0] == 0
    return run_on_disk


def execute() -> tuple[dg.ExecuteInProcessResult, dict[str, Any]]:
    """Runs the job with the environment's settings. Returns its result and the metadata of its step."""
    job = build_defs(Pipeline(load_settings()), publication=False).resolve_job_def("retention")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    outputs = [event.step_output_data for event in result.all_node_events if event.is_successful_output]
    return result, {name: each.value for output in outputs for name, each in output.metadata.items()}


def ids() -> list[str]:
    return [row["submission_id"] for row in Lake("lake").read(SUBMISSIONS, DAY).to_pylist()]


def test_it_removes_only_if_the_setting_allows_it(
    ended: Run, landing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in RULES.items():
        monkeypatch.setenv(name, value)
    due = {"days": 365, "submissions": 1, "documents_days": 30, "documents": 2, "rejected_days": 90}
    result, metadata = execute()
    assert result.success
    assert metadata == due | {"rejected_rows": 1, "held": 1, "removed": False}
    assert ids() == [f"{MARK}-0", "held"]
    assert ended("audit", "list", "--json")[1].count('"retention"') == 0

    monkeypatch.setenv("KYC_RETENTION_APPLY", "true")
    result, metadata = execute()
    assert result.success
    assert metadata == due | {"rejected_rows": 1, "held": 1, "removed": True}
    assert ids() == ["held"]
    rejected = Lake("lake").read(REJECTED_SUBMISSIONS, DAY).to_pylist()
    assert {(row["submission_id"], row["reason"]) for row in rejected} == {
        (None, "erased_subject"),
        (None, "file_not_found"),
    }
    assert {path.name.split("-")[0] for path in (landing.root / "documents").iterdir()} >= {"held"}
    assert not (landing.root / "documents" / f"{MARK}-0-id.jpg").exists()
    entries = [json.loads(line) for line in ended("audit", "list", "--json")[1].splitlines()]
    assert [entry["action"] for entry in entries] == ["legal-hold-add", "retention", "retention-ended"]
    assert entries[1]["reason"] == f"job retention, run {result.run_id}"
    assert entries[1]["details"] == due | {"rejected_rows": 1, "held": 1}

    result, metadata = execute()
    assert (result.success, metadata["removed"]) == (True, False)


def test_a_command_that_fails_fails_the_job(ended: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in RULES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KYC_RETENTION_APPLY", "true")
    monkeypatch.setenv("DAGSTER_HOME", "nowhere")
    Path("report").mkdir()
    Path("report/index.html").write_text("published")
    result, _ = execute()
    assert not result.success
    [failure] = result.get_failed_step_keys()
    assert failure == "apply_retention"
    assert "DAGSTER_HOME is not a folder" in str(result.failure_data_for_node(failure))
    assert ids() == [f"{MARK}-0", "held"]


def test_the_schedule_skips_without_a_retention_period(
    run_on_disk: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tick() -> list[dg.RunRequest]:
        pipeline = Pipeline(load_settings())
        schedule = build_defs(pipeline, publication=False).resolve_schedule_def("daily_retention")
        with (
            dg.DagsterInstance.ephemeral() as instance,
            dg.build_schedule_context(instance, resources={"pipeline": pipeline}) as context,
        ):
            return list(schedule.evaluate_tick(context).run_requests or [])

    assert tick() == []
    monkeypatch.setenv("KYC_RETAIN_REJECTED_DAYS", "90")
    assert len(tick()) == 1
