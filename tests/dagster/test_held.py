"""Decisions about held submissions, on the command line and in the launchpad."""

from collections import Counter
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

from kyc_pipeline.cli.backfill import read_results
from kyc_pipeline.cli.held import held
from kyc_pipeline.cli.reopen import reopen
from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import HTML_502, Responds
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.decisions import list_held
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.dispatcher import Timing
from tests.conftest import Landing
from tests.dagster.conftest import DAILY

DAY = "2024-09-08"
TOKEN = "test-token"


def config(submission_id: str, decision: str) -> dict[str, object]:
    values = {"submission_id": submission_id, "decision": decision}
    return {"ops": {"record_decision": {"config": values}}}


def outcomes(settings: Settings) -> Counter[str]:
    outcomes: list[Any] = Lake(settings.kyc_lake).read(VERIFICATION_RESPONSES, DAY)["outcome"].to_pylist()
    return Counter(outcomes)


@pytest.mark.parametrize(
    ("decision", "received", "after"),
    [("retry", 2, Counter(completed=2)), ("abandon", 1, Counter(completed=1, uncertain=1))],
)
def test_a_decision_in_the_launchpad(
    landing: Landing,
    settings: Settings,
    instance: dg.DagsterInstance,
    decision: str,
    received: int,
    after: Counter[str],
) -> None:
    first, lost = landing.day(DAY, 2)
    with running_simulator(token=TOKEN, faults={lost: [HTML_502]}) as simulator:
        pipeline = Pipeline(settings.model_copy(update={"deepxl_base_url": simulator.url}))
        definitions = build_defs(pipeline, CallControls(timing=Timing(look_ups=(0.0, 0.05))))
        job = definitions.resolve_job_def("verify_and_publish")
        assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY).success
        assert outcomes(settings) == Counter(completed=1, uncertain=1)
        with Ledger(settings.kyc_ledger_url) as ledger:
            assert [found.submission_id for found in list_held(ledger, None)] == [lost]
        assert read_results(pipeline, [DAY]).left == [(DAY, lost, "uncertain")]
        resolve = definitions.resolve_job_def("resolve_held_submission")
        assert resolve.execute_in_process(instance=instance, run_config=config(lost, decision)).success
        assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY).success
        assert simulator.received == Counter({first: 1, lost: received})
        assert read_results(pipeline, [DAY]).left == []
    assert outcomes(settings) == after


def test_a_decision_about_a_submission_that_is_not_held_fails_with_one_line(
    pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    job = build_defs(pipeline).resolve_job_def("resolve_held_submission")
    result = job.execute_in_process(
        instance=instance, run_config=config("unknown", "retry"), raise_on_error=False
    )
    failure: Any = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    assert "unknown" in failure.user_failure_data.description


def test_a_decision_on_the_command_line(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYC_LEDGER_URL", settings.kyc_ledger_url)
    kept, lost = landing.day(DAY, 2)
    with running_simulator(token=TOKEN, faults={lost: [HTML_502]}) as simulator:
        pipeline = Pipeline(settings.model_copy(update={"deepxl_base_url": simulator.url}))
        controls = CallControls(timing=Timing(look_ups=(0.0,)))
        job = build_defs(pipeline, controls).resolve_job_def("verify_and_publish")
        assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY).success
        listed = CliRunner().invoke(held, ["list"])
        assert listed.exit_code == 0
        assert lost in listed.output
        assert "502" in listed.output
        assert kept not in listed.output
        resolved = CliRunner().invoke(held, ["resolve", "--submission", lost, "--as", "retry"])
        assert resolved.exit_code == 0, resolved.output
        assert "nothing is held" in CliRunner().invoke(held, ["list"]).output
        assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY).success
        assert simulator.received == Counter({kept: 1, lost: 2})
    assert outcomes(settings) == Counter(completed=2)


def test_a_refusal_is_taken_back_on_the_command_line(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYC_LEDGER_URL", settings.kyc_ledger_url)
    kept, refused = landing.day(DAY, 2)
    with running_simulator(token=TOKEN, faults={refused: [Responds(422)]}) as simulator:
        pipeline = Pipeline(settings.model_copy(update={"deepxl_base_url": simulator.url}))
        controls = CallControls(timing=Timing(look_ups=(0.0,)))
        job = build_defs(pipeline, controls).resolve_job_def("verify_and_publish")
        assert job.execute_in_process(instance=instance, partition_key=DAY).success
        assert outcomes(settings) == Counter(completed=1, refused=1)
        reopened = CliRunner().invoke(reopen, ["--submission", refused, "--reason", "the proxy refused it"])
        assert (reopened.exit_code, DAY in reopened.output) == (0, True), reopened.output
        again = CliRunner().invoke(reopen, ["--submission", kept, "--reason", "why not"])
        assert "completed" in str(again.exception)
        assert job.execute_in_process(instance=instance, partition_key=DAY).success
        assert simulator.received == Counter({kept: 1, refused: 2})
    assert outcomes(settings) == Counter(completed=2)
