"""Runs that select only some tables or checks of a step, and runs whose backfill is cancelled."""

import threading
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from kyc_pipeline.cli.local_run import failure_line
from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.orchestration import paid_calls
from kyc_pipeline.orchestration.jobs import BACKFILL, range_tags
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.signals import StopFlag
from tests.conftest import Landing
from tests.dagster.conftest import DAILY, TOKEN
from tests.faults import Meanwhile

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
RESPONSES = dg.AssetKey(VERIFICATION_RESPONSES.name)
ALL_CHECKS = {
    dg.AssetCheckKey(RESPONSES, name)
    for name in (
        "every_submission_accounted_for",
        "none_uncertain_or_quarantined",
        "all_attempted",
        "needs_nobody",
    )
}
"""What the button "Execute all" of the asset selects."""


def of_partitions(instance: dg.DagsterInstance, check: str) -> dict[str, str]:
    """The latest result of each day."""
    found = instance.event_log_storage.get_asset_check_partition_info([dg.AssetCheckKey(RESPONSES, check)])
    return {one.partition_key: one.latest_execution_status.value for one in found if one.partition_key}


def test_executing_checks_of_responses_makes_no_call_and_reads_the_stores_as_they_are(
    landing: Landing, job: dg.JobDefinition, instance: dg.DagsterInstance, simulator: Simulator
) -> None:
    for day in (DAY, NEXT_DAY):
        landing.day(day, 2)
    left = {"ops": {"verify": {"config": {"max_calls": 3}}}}
    job.execute_in_process(
        instance=instance, tags=range_tags(DAY, NEXT_DAY), asset_selection=DAILY, run_config=left
    )
    checks = job.get_subset(asset_selection=set(), asset_check_selection=ALL_CHECKS)
    result = checks.execute_in_process(instance=instance, partition_key=NEXT_DAY)
    assert len(simulator.received) == 3
    found = {event.check_name: event for event in result.get_asset_check_evaluations()}
    assert {event.partition for event in found.values()} == {NEXT_DAY}
    assert not found["all_attempted"].passed
    assert (found["all_attempted"].description or "").startswith(f"{NEXT_DAY}: 1 of 2 submissions left: run ")
    assert found["needs_nobody"].passed

    # Since then, the day has settled, but nobody has checked all days again.
    job.execute_in_process(instance=instance, partition_key=NEXT_DAY, asset_selection=DAILY)
    calls = len(simulator.received)
    result = checks.execute_in_process(instance=instance)
    assert len(simulator.received) == calls == 4
    assert {event.check_name for event in result.get_asset_check_evaluations()} == {
        key.name for key in ALL_CHECKS
    }
    for check in ALL_CHECKS:
        assert of_partitions(instance, check.name) == {DAY: "SUCCEEDED", NEXT_DAY: "SUCCEEDED"}


@pytest.mark.parametrize(
    ("table", "check"), [("rejected_submissions", "few_rejections"), ("contract_drift", "fields_known")]
)
def test_checks_that_need_their_step_say_so(
    job: dg.JobDefinition, instance: dg.DagsterInstance, table: str, check: str
) -> None:
    [key] = [key for key in job.asset_layer.asset_graph.asset_check_keys if key.name == check]
    checks = job.get_subset(asset_selection=set(), asset_check_selection={key})
    result = checks.execute_in_process(instance=instance, partition_key=DAY, raise_on_error=False)
    [failure] = result.filter_events(lambda event: event.is_step_failure)
    assert failure_line(failure).endswith(f"cannot run on their own: materialize {table}")


def test_a_step_reports_all_its_tables_whatever_is_selected(
    landing: Landing, pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    landing.day(DAY, 2)
    landing.manifest(DAY, [{"submission_id": "bad"}], "bad.jsonl")
    everything = build_defs(pipeline, publication=False).resolve_implicit_global_asset_job_def()
    job = everything.get_subset(asset_selection={dg.AssetKey(SUBMISSIONS.name)})
    assert job.execute_in_process(instance=instance, partition_key=DAY).success
    rows = {}
    for table in (SUBMISSIONS, REJECTED_SUBMISSIONS):
        event = instance.get_latest_materialization_event(dg.AssetKey(table.name))
        assert event is not None
        assert event.asset_materialization is not None
        assert event.asset_materialization.partition == DAY
        rows[table.name] = event.asset_materialization.metadata["dagster/partition_row_count"].value
    assert rows == {"submissions": 2, "rejected_submissions": 1}
    check = dg.AssetCheckKey(dg.AssetKey(REJECTED_SUBMISSIONS.name), "few_rejections")
    [info] = instance.event_log_storage.get_asset_check_partition_info([check])
    assert (info.partition_key, info.is_current) == (DAY, True)


@pytest.mark.parametrize("before", [True, False], ids=["before the first call", "during the first call"])
def test_a_cancelled_backfill_stops_the_calls_at_once(
    landing: Landing,
    settings: Settings,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    before: bool,
) -> None:
    monkeypatch.setattr(paid_calls, "LOOK_AT_BACKFILL_SECONDS", 0.01)
    backfill: Any = PartitionBackfill(
        "abcdefgh",
        BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=0.0,
        partition_set_origin=None,
    )
    instance.add_backfill(backfill)
    stop, draining = StopFlag(), threading.Event()

    def cancel() -> None:
        instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELING))
        assert before or draining.wait(60)

    if before:
        cancel()
    first, *_ = landing.day(DAY, 6)
    with (
        running_simulator(token=TOKEN, faults={first: [Meanwhile(cancel)]}) as simulator,
        stop.watched(draining.set),
    ):
        changes = {"deepxl_base_url": simulator.url, "deepxl_max_concurrency": 1}
        pipeline = Pipeline(settings.model_copy(update=changes))
        job = build_defs(pipeline, CallControls(stop=stop), publication=False).resolve_job_def(
            "verify_and_publish"
        )
        job.execute_in_process(instance=instance, partition_key=DAY, tags={BACKFILL: backfill.backfill_id})
        assert list(simulator.received) == ([] if before else [first])
    outcomes = pipeline.lake.read(VERIFICATION_RESPONSES, DAY, ["outcome"])["outcome"].to_pylist()
    assert outcomes.count("not_attempted") == (6 if before else 5)
