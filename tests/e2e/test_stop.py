"""`kyc-pipeline backfill`, stopped by signals with calls in flight; the simulator counts what it receives."""

import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.faults import Hangs
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.engine import verify_partition
from kyc_pipeline.verify.signals import StopFlag
from tests.conftest import Landing
from tests.dagster.endings import COMMAND_KILLED
from tests.e2e.servers import clean_environment, poll, script

pytestmark = pytest.mark.e2e

DAY = "2024-09-08"
TOKEN = "test-token"
IN_FLIGHT = 4
UNFINISHED = 3


@contextmanager
def backfill(folder: Path, simulator: Simulator) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command in a process of its own."""
    (folder / "dagster_home").mkdir(exist_ok=True)
    (folder / "dagster_home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
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


def outcomes(folder: Path) -> Counter[str]:
    outcomes: list[Any] = Lake(str(folder / "lake")).read(VERIFICATION_RESPONSES, DAY)["outcome"].to_pylist()
    return Counter(outcomes)


def resume(folder: Path, simulator: Simulator, ids: list[str]) -> None:
    """A second run completes the day; both together send no submission twice."""
    settings = Settings(
        _env_file=None,
        deepxl_base_url=simulator.url,
        deepxl_api_token=SecretStr(TOKEN),
        deepxl_requests_per_second=0,
        deepxl_timeout_seconds=1,
        kyc_landing=folder / "landing",
    )
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


def test_a_killed_command_leaves_a_run_that_started_and_pays_nothing_twice(
    landing: Landing, tmp_path: Path
) -> None:
    ids = landing.day(DAY, 12)
    faults = {id_: [Hangs(record=True)] for id_ in ids[: IN_FLIGHT + 1]}
    with running_simulator(token=TOKEN, faults=faults) as simulator:
        with backfill(tmp_path, simulator) as process:
            poll(lambda: len(simulator.records) == IN_FLIGHT, "hanging calls", log=tmp_path / "log")
            process.kill()
            assert process.wait() == -signal.SIGKILL
        with dg.DagsterInstance.from_config(str(tmp_path / "dagster_home")) as instance:
            [run] = instance.get_runs()
        assert run.status.value == COMMAND_KILLED.run
        resume(tmp_path, simulator, ids)


def test_two_signals_give_up_the_calls_in_flight(landing: Landing, tmp_path: Path) -> None:
    ids = landing.day(DAY, 12)
    # One more than can be in flight, because the engine chooses which go first.
    faults = {id_: [Hangs(record=True)] for id_ in ids[: IN_FLIGHT + 1]}
    log = tmp_path / "log"
    with running_simulator(token=TOKEN, faults=faults) as simulator:
        with backfill(tmp_path, simulator) as process:
            poll(lambda: len(simulator.records) == IN_FLIGHT, "hanging calls", log=log)
            process.send_signal(signal.SIGINT)
            poll(lambda: "a second signal abandons them" in log.read_text(), "the announcement", log=log)
            process.send_signal(signal.SIGINT)
            assert process.wait() == UNFINISHED, log.read_text()
        assert "Traceback" not in log.read_text()
        assert simulator.received.total() == IN_FLIGHT
        assert outcomes(tmp_path) == Counter(uncertain=IN_FLIGHT, not_attempted=len(ids) - IN_FLIGHT)
        # The simulator had processed them: the next run finds them by look-up and pays only for the others.
        resume(tmp_path, simulator, ids)
