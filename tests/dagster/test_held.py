"""Decisions about held submissions, on the command line and in the launchpad."""

from collections import Counter
from pathlib import Path
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
from kyc_pipeline.ledger.pseudonym_key import forget_pseudonym_key
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.dispatcher import Timing
from kyc_pipeline.wording import run_again
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


def run_until_held(job: dg.JobDefinition, instance: dg.DagsterInstance) -> None:
    """A run that holds a submission fails, after it has flattened the others."""
    run = job.execute_in_process(
        instance=instance, partition_key=DAY, asset_selection=DAILY, raise_on_error=False
    )
    (failure,) = run.filter_events(lambda event: event.is_step_failure)
    assert failure.step_key == "unfinished_days"
    assert DAY in instance.get_materialized_partitions(dg.AssetKey("verifications"))


def test_decisions_in_the_launchpad(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance
) -> None:
    first, again, never = landing.day(DAY, 3)
    lost = {again: "retry", never: "abandon"}
    with running_simulator(token=TOKEN, faults={key: [HTML_502] for key in lost}) as simulator:
        pipeline = Pipeline(settings.model_copy(update={"deepxl_base_url": simulator.url}))
        definitions = build_defs(pipeline, CallControls(timing=Timing(look_ups=(0.0, 0.05))))
        job = definitions.resolve_job_def("verify_and_publish")
        run_until_held(job, instance)
        assert outcomes(settings) == Counter(completed=1, uncertain=2)
        with Ledger(settings.kyc_ledger_url) as ledger:
            assert {found.submission_id for found in list_held(ledger, None)} == set(lost)
        assert read_results(pipeline, [DAY]).left == [(DAY, key, "uncertain") for key in lost]
        with Ledger(settings.kyc_ledger_url) as ledger:
            forget_pseudonym_key(ledger)  # a ledger of an older version has none
        vars(pipeline).pop("pseudonymizer")  # another process
        resolve = definitions.resolve_job_def("resolve_held_submission")
        for key, decision in lost.items():
            assert resolve.execute_in_process(instance=instance, run_config=config(key, decision)).success
        assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY).success
        assert simulator.received == Counter({first: 1, again: 2, never: 1})
        assert read_results(pipeline, [DAY]).left == []
    assert outcomes(settings) == Counter(completed=2, abandoned=1)


def test_a_decision_about_a_submission_that_is_not_held_fails_with_one_line(
    pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    job = build_defs(pipeline).resolve_job_def("resolve_held_submission")
    result = job.execute_in_process(
        instance=instance, run_config=config("unknown", "retry"), raise_on_error=False
    )
    failure: Any = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    assert "unknown" in failure.user_failure_data.description


def test_decisions_on_the_command_line(
    landing: Landing,
    settings: Settings,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("KYC_LEDGER_URL", settings.kyc_ledger_url.get_secret_value())
    assert settings.kyc_pseudonym_key is not None
    monkeypatch.setenv("KYC_PSEUDONYM_KEY", settings.kyc_pseudonym_key.get_secret_value())
    monkeypatch.setenv("KYC_HOME", str(tmp_path))
    kept, lost, other, refused = landing.day(DAY, 4)
    faults = {lost: [HTML_502], other: [HTML_502], refused: [Responds(422)]}
    with running_simulator(token=TOKEN, faults=faults) as simulator:
        pipeline = Pipeline(settings.model_copy(update={"deepxl_base_url": simulator.url}))
        controls = CallControls(timing=Timing(look_ups=(0.0,)))
        job = build_defs(pipeline, controls).resolve_job_def("verify_and_publish")
        run_until_held(job, instance)
        assert outcomes(settings) == Counter(completed=1, uncertain=2, refused=1)
        listed = CliRunner().invoke(held, ["list"])
        assert listed.exit_code == 0
        assert listed.output.count(lost) == listed.output.count(other) == 1
        assert "502" in listed.output
        assert kept not in listed.output
        for wrong in ([], ["--all", "--date", DAY], ["--submission", lost, "--all"]):
            assert CliRunner().invoke(held, ["resolve", *wrong, "--as", "retry"]).exit_code == 2
        next_day = CliRunner().invoke(held, ["resolve", "--date", "2024-09-09", "--as", "retry"])
        assert (next_day.exit_code, next_day.output) == (0, "nothing is held\n")
        for which, key in ((["--submission", lost], lost), (["--date", DAY], other)):
            resolved = CliRunner().invoke(held, ["resolve", *which, "--as", "retry"])
            assert (resolved.exit_code, resolved.output) == (
                0,
                f"{key}: retry\nnow run {run_again(DAY)}: it applies the decision\n",
            )
        assert "nothing is held" in CliRunner().invoke(held, ["list"]).output
        # A refusal is taken back.
        reopened = CliRunner().invoke(reopen, ["--submission", refused, "--reason", "the proxy refused it"])
        assert (reopened.exit_code, DAY in reopened.output) == (0, True), reopened.output
        again = CliRunner().invoke(reopen, ["--submission", kept, "--reason", "why not"])
        assert "completed" in str(again.exception)
        assert job.execute_in_process(instance=instance, partition_key=DAY, asset_selection=DAILY).success
        assert simulator.received == Counter({kept: 1, lost: 2, other: 2, refused: 2})
    assert outcomes(settings) == Counter(completed=4)
