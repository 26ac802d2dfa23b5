"""What Dagster stores and the console shows of a failure."""

import ast
import errno
import getpass
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import dagster as dg
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

import kyc_pipeline.cli
from kyc_pipeline.cli.local_run import failure_line
from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.faults import HTML_502
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.errors import FULL_ERRORS, KycError, UsageError, plain_line
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger.schema import decisions
from kyc_pipeline.orchestration.jobs import range_tags
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.partitions import DayResult, daily_partitions, work_through
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.dispatcher import Timing
from kyc_pipeline.vocabulary import Outcome
from tests.conftest import Landing
from tests.dagster.conftest import DAILY

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
SECRET = "Jane-Roe-4711"


class Careless(Exception):
    """An error that quotes the data that caused it."""


def everything(instance: dg.DagsterInstance) -> str:
    """Everything that Dagster stores about its runs."""
    stored = []
    for record in instance.get_run_records():
        stored.append(repr(record.dagster_run))
        stored += [repr(entry) for entry in instance.all_logs(record.dagster_run.run_id)]
    return "\n".join(stored)


@safe_errors
def fail_in_function() -> None:
    raise_with_causes()


@safe_errors
def fail_in_generator() -> Iterator[Any]:
    yield dg.MaterializeResult(metadata={"made": 1})
    raise_with_causes()


def raise_with_causes() -> None:
    context, cause, error = (Careless(f"{when} {SECRET}") for when in ("first", "then", "at last"))
    cause.__context__ = context
    raise error from cause


def test_every_step_and_tick_has_safe_errors() -> None:
    run_by_dagster = {"dg.op", "dg.asset", "dg.multi_asset", "dg.multi_asset_check"}
    run_by_dagster |= {"dg.sensor", "dg.run_failure_sensor", "dg.schedule"}
    found = 0
    for path in Path(kyc_pipeline.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = [ast.unparse(decorator).partition("(")[0] for decorator in node.decorator_list]
                if run_by_dagster.intersection(names):
                    found += 1
                    assert names[1:] == ["safe_errors"], f"{path.name}: {node.name}"
    assert found >= 12


@pytest.mark.parametrize("step", [fail_in_function, fail_in_generator])
def test_only_the_class_of_a_foreign_error_is_stored(
    step: Callable[..., Any], instance: dg.DagsterInstance
) -> None:
    asset = dg.asset(name="careless")(step)
    result = dg.materialize([asset], instance=instance, raise_on_error=False)
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    assert "unexpected Careless" in failure_line(failure)
    assert SECRET not in failure_line(failure)
    assert SECRET not in everything(instance)


@pytest.mark.parametrize(
    ("error", "expected"), [(Careless(SECRET), [DAY]), (KycError("our own message"), [DAY, NEXT_DAY])]
)
def test_a_foreign_error_skips_the_remaining_days_and_names_its_day(
    error: Exception, expected: list[str], instance: dg.DagsterInstance
) -> None:
    started: list[str] = []

    @dg.asset(partitions_def=daily_partitions(Settings(_env_file=None).kyc_start_date))
    def careless(context: dg.AssetExecutionContext) -> Iterator[Any]:
        def work(day: str) -> DayResult:
            started.append(day)
            raise error

        yield from work_through(context, work)

    result = dg.materialize(
        [careless], instance=instance, tags=range_tags(DAY, NEXT_DAY), raise_on_error=False
    )
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    assert failure_line(failure).startswith(f"{DAY}: {plain_line(error)}")
    assert started == expected
    assert SECRET not in everything(instance)


def test_a_verbose_console_shows_the_full_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger(FULL_ERRORS)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(kyc_pipeline.cli.cli, "main", lambda **_: fail_in_function())
    for arguments, shown in ((["kyc-pipeline"], 0), (["kyc-pipeline", "--verbose"], 3)):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match="1"):
            kyc_pipeline.cli.main()
        assert capsys.readouterr().err.count(SECRET) == shown


def test_a_bug_of_a_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kyc_pipeline.cli.cli, "main", lambda **_: raise_with_causes())
    monkeypatch.setattr(sys, "argv", ["kyc-pipeline"])
    with pytest.raises(SystemExit, match="1"):
        kyc_pipeline.cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kyc-pipeline: unexpected Careless")
    assert SECRET not in line


@pytest.mark.parametrize(
    ("error", "told", "advice"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), SECRET),
            "a disk cannot be used (No space left on device",
            "free space or repair it, then run again",
        ),
        (
            OSError(errno.EACCES, os.strerror(errno.EACCES), SECRET),
            "a file or folder cannot be used (Permission denied",
            "correct its access rights, or KYC_HOME and the settings of paths",
        ),
        (
            OSError(errno.EISDIR, os.strerror(errno.EISDIR), SECRET),
            "a file or folder cannot be used (Is a directory",
            "correct its access rights, or KYC_HOME and the settings of paths",
        ),
        (
            aiohttp.ClientConnectionError(SECRET),
            "the object store cannot be used (ClientConnectionError",
            "check AWS_ENDPOINT_URL, the network, the credentials and the policy, then run again",
        ),
    ],
)
def test_a_fault_outside_is_not_to_be_reported(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    told: str,
    advice: str,
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(kyc_pipeline.cli.cli, "main", fail)
    monkeypatch.setattr(sys, "argv", ["kyc-pipeline"])
    with pytest.raises(SystemExit, match="1"):
        kyc_pipeline.cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kyc-pipeline: {told} in kyc_pipeline.cli, line ")
    assert line.endswith(f"): {advice}")
    assert SECRET not in line


def test_a_plain_line_names_the_line_of_our_code() -> None:
    assert plain_line(UsageError("do this")) == "do this"
    with pytest.raises(ValueError, match="not a partition date") as raised:
        Pipeline(Settings(_env_file=None)).lake.path(VERIFICATION_RESPONSES, "20240901")
    assert plain_line(raised.value).startswith("unexpected ValueError in kyc_pipeline.lake.storage, line ")


def test_the_operators_name_is_in_the_ledger_and_not_in_the_run(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", SECRET)
    assert getpass.getuser() == SECRET
    (lost,) = landing.day(DAY, 1)
    with running_simulator(token="test-token", faults={lost: [HTML_502]}) as simulator:
        pipeline = Pipeline(settings.model_copy(update={"deepxl_base_url": simulator.url}))
        definitions = build_defs(pipeline, CallControls(timing=Timing(look_ups=(0.0,))))
        definitions.resolve_job_def("verify_and_publish").execute_in_process(
            instance=instance, partition_key=DAY, asset_selection=DAILY, raise_on_error=False
        )
        result = definitions.resolve_job_def("resolve_held_submission").execute_in_process(
            instance=instance,
            run_config={
                "ops": {"record_decision": {"config": {"submission_id": lost, "decision": "abandon"}}}
            },
        )
    with pipeline.open_ledger() as ledger, ledger.read() as connection:
        decided_by = connection.execute(sa.select(decisions.c.decided_by)).scalar_one()
    assert decided_by == f"{SECRET}, run {result.run_id}"
    assert SECRET not in everything(instance)


def test_a_rejected_credential_leaves_no_day_without_outcomes(
    landing: Landing, settings: Settings, simulator: Simulator, instance: dg.DagsterInstance
) -> None:
    for day in (DAY, NEXT_DAY):
        landing.day(day, 2)
    pipeline = Pipeline(settings.model_copy(update={"deepxl_api_token": SecretStr("revoked")}))
    definitions = build_defs(pipeline)
    result = definitions.resolve_job_def("verify_and_publish").execute_in_process(
        instance=instance, tags=range_tags(DAY, NEXT_DAY), asset_selection=DAILY, raise_on_error=False
    )
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    # The second day records its outcomes without a call.
    assert failure.step_key == "unfinished_days"
    assert failure_line(failure).startswith(f"{DAY}: 0 settled, 0 held, 2 left; ")
    assert "401" in failure_line(failure)
    assert NEXT_DAY not in failure_line(failure)
    assert not simulator.received
    for day in (DAY, NEXT_DAY):
        outcomes = pipeline.lake.read(VERIFICATION_RESPONSES, day)["outcome"].to_pylist()
        assert Counter(outcomes) == {Outcome.NOT_ATTEMPTED: 2}
