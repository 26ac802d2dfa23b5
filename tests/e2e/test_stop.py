"""`kyc-pipeline backfill`, stopped by signals with calls in flight; the simulator counts what it receives."""

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.landing.opening import open_landing
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.orchestration.alerts.conditions import Reported, look
from kyc_pipeline.orchestration.killed_commands import end_killed_commands, killed_commands
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.engine import verify_partition
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.wording import run_again
from tests.conftest import Landing
from tests.dagster.endings import COMMAND_KILLED
from tests.e2e.servers import clean_environment, poll, script
from tests.faults import WaitsForTest

pytestmark = pytest.mark.e2e

DAY = "2024-09-08"
TOKEN = "test-token"
IN_FLIGHT = 4
UNFINISHED = 3


@contextmanager
def backfill(folder: Path, simulator: Simulator) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command in a process of its own."""
    (folder / "dagster_home").mkdir(exist_ok=True)
    (folder / "dagster_home" / "dagster.yaml").write_text(
        "telemetry:\n  enabled: false\nrun_retries:\n  enabled: true\n  max_retries: 1\n"
    )
    environment = clean_environment(
        folder,
        DAGSTER_HOME=str(folder / "dagster_home"),
        DEEPXL_BASE_URL=simulator.url,
        DEEPXL_API_TOKEN=TOKEN,
        DEEPXL_REQUESTS_PER_SECOND="0",
        DEEPXL_MAX_CONCURRENCY=str(IN_FLIGHT),
        DEEPXL_TIMEOUT_SECONDS="600",
        KYC_LANDING="landing",
        KYC_LAKE="lake",
        KYC_LEDGER_URL="sqlite:///ledger.sqlite",
        KYC_WAREHOUSE="kyc.duckdb",
        KYC_REPORT="report.html",
        KYC_PSEUDONYM_KEY="0123456789abcdef" * 2,
    )
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [script("kyc-pipeline"), "backfill", "--no-publish", "--from", DAY, "--to", DAY],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@dg.job
def nothing() -> None:
    """A job without steps."""


def dagster_instance(folder: Path) -> dg.DagsterInstance:
    return dg.DagsterInstance.from_config(str(folder / "dagster_home"))


def outcomes(folder: Path) -> Counter[str]:
    outcomes: list[Any] = Lake(str(folder / "lake")).read(VERIFICATION_RESPONSES, DAY)["outcome"].to_pylist()
    return Counter(outcomes)


def settings_of(folder: Path, simulator: Simulator) -> Settings:
    return Settings(
        _env_file=None,
        deepxl_base_url=simulator.url,
        deepxl_api_token=SecretStr(TOKEN),
        deepxl_requests_per_second=0,
        kyc_landing=folder / "landing",
        kyc_lake=str(folder / "lake"),
        kyc_ledger_url=f"sqlite:///{folder / 'ledger.sqlite'}",
    )


def resume(folder: Path, simulator: Simulator, ids: list[str]) -> None:
    """A second run completes the day; both together send no submission twice."""
    settings = settings_of(folder, simulator)
    with Ledger(f"sqlite:///{folder / 'ledger.sqlite'}") as ledger:
        verify_partition(
            settings=settings,
            lake=Lake(str(folder / "lake")),
            ledger=ledger,
            date=DAY,
            run_id="resumed",
            stop=StopFlag(),
        )
    assert outcomes(folder) == Counter(completed=len(ids))
    assert dict(simulator.received) == dict.fromkeys(ids, 1)
    assert len(simulator.records) == len(ids)


def test_a_killed_command_pays_nothing_twice_and_the_next_one_marks_its_run_as_failed(
    landing: Landing, tmp_path: Path
) -> None:
    ids = landing.day(DAY, 12)
    waits = WaitsForTest()
    with running_simulator(token=TOKEN, faults={id_: [waits] for id_ in ids}) as simulator:
        with backfill(tmp_path, simulator) as process:
            poll(lambda: len(simulator.records) == IN_FLIGHT, "calls in flight", log=tmp_path / "log")
            # A stopped process may go on, so its run has not ended.
            process.send_signal(signal.SIGSTOP)
            with dagster_instance(tmp_path) as instance:
                assert end_killed_commands(instance) == []
            process.kill()
            assert process.wait() == -signal.SIGKILL
        waits.go.set()
        resume(tmp_path, simulator, ids)
        with backfill(tmp_path, simulator) as process:
            assert process.wait() == 0, (tmp_path / "log").read_text()
        assert simulator.received.total() == len(ids)
    with dagster_instance(tmp_path) as instance:
        new, killed = instance.get_runs()
        assert (
            f"run {killed.run_id[:8]} of a killed command is now marked as failed"
            in (tmp_path / "log").read_text()
        )
        assert (new.status.value, killed.status.value) == ("SUCCESS", COMMAND_KILLED.run)
        assert killed.tags["dagster/will_retry"] == "false", "somebody repeats the command"
        [entry] = [
            entry
            for entry in instance.all_logs(killed.run_id)
            if entry.dagster_event and entry.dagster_event.is_run_failure
        ]
        assert COMMAND_KILLED.log in entry.message
        assert run_again(DAY) in entry.message
        # The alert is sent once.
        pipeline = Pipeline(settings_of(tmp_path, simulator))
        arguments = pipeline, instance, open_landing(tmp_path / "landing").snapshot()
        alerts, seen = look(*arguments, Reported.at_first(time.time()), time.time())
        assert [(alert.kind, alert.runs) for alert in alerts] == [(COMMAND_KILLED.alert, (killed.run_id,))]
        assert look(*arguments, seen, time.time())[0] == []
        # A run that is executed again in the UI has the old one's tags.
        copy = instance.create_run_for_job(
            nothing, tags=dict(killed.tags), status=dg.DagsterRunStatus.STARTED
        )
        result: Any = killed_commands(dg.build_sensor_context(instance))
        assert result.skip_message == "none"
        assert instance.get_run_by_id(copy.run_id) == copy


def test_two_signals_give_up_the_calls_in_flight(landing: Landing, tmp_path: Path) -> None:
    ids = landing.day(DAY, 12)
    waits = WaitsForTest()
    log = tmp_path / "log"
    with running_simulator(token=TOKEN, faults={id_: [waits] for id_ in ids}) as simulator:
        with backfill(tmp_path, simulator) as process:
            poll(lambda: len(simulator.records) == IN_FLIGHT, "calls in flight", log=log)
            process.send_signal(signal.SIGINT)
            poll(lambda: "a second signal abandons them" in log.read_text(), "the announcement", log=log)
            process.send_signal(signal.SIGINT)
            assert process.wait() == UNFINISHED, log.read_text()
        assert "Traceback" not in log.read_text()
        assert simulator.received.total() == IN_FLIGHT
        assert outcomes(tmp_path) == Counter(uncertain=IN_FLIGHT, not_attempted=len(ids) - IN_FLIGHT)
        waits.go.set()
        # The simulator had processed them: the next run finds them by look-up and pays only for the others.
        resume(tmp_path, simulator, ids)
