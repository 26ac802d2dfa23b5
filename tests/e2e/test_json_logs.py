"""`KYC_LOG_FORMAT=json` in real processes: webserver, daemon and their code servers, and a run."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kyc_pipeline.cli.dagster_home import make_home
from tests.conftest import Landing
from tests.e2e.servers import clean_environment, free_port, poll, running, script

pytestmark = pytest.mark.e2e


def objects(text: str) -> list[dict[str, Any]]:
    """The lines, each a JSON object with what every object has."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in found)
    return found


def test_a_run_of_dagsters_own_command(landing: Landing, tmp_path: Path) -> None:
    """As the process that a run launcher starts: it knows only the definitions."""
    landing.day("2024-09-01", 1)
    make_home(tmp_path / "dagster")
    environment = clean_environment(
        tmp_path,
        KYC_LANDING=str(landing.root),
        KYC_HOME=str(tmp_path),
        DAGSTER_HOME=str(tmp_path / "dagster"),
        KYC_LOG_FORMAT="json",
        PYTHONWARNINGS="ignore",
    )
    command = [
        script("dagster"),
        "asset",
        "materialize",
        "--select",
        "submissions",
        "--partition",
        "2024-09-01",
    ]
    done = subprocess.run(
        [*command, "-m", "kyc_pipeline.definitions"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    steps = [line for line in objects(done.stderr) if line.get("step") == "ingest"]
    assert steps
    assert {line["partition"] for line in steps} == {"2024-09-01"}
    assert len({line["run_id"] for line in steps}) == 1


def test_the_ui_and_its_daemon(tmp_path: Path) -> None:
    environment = clean_environment(
        tmp_path, KYC_HOME=str(tmp_path), KYC_LOG_FORMAT="json", PYTHONWARNINGS="ignore"
    )
    log = tmp_path / "log"
    command = [script("kyc-pipeline"), "ui", "--port", str(free_port())]
    with running(command, cwd=tmp_path, env=environment, log=log, stop=signal.SIGTERM):
        poll(lambda: "Dagster UI on" in log.read_text(), "the webserver", log=log)
        poll(lambda: "SensorDaemon" in log.read_text(), "the daemon", log=log)
        written = (
            log.read_text()
        )  # before the end, when DuckDB may print about objects that Python did not free
    lines = written[: written.rindex("\n")].splitlines(keepends=True)
    [for_people] = [line for line in lines if line.startswith("Dagster UI on")]
    lines.remove(for_people)
    assert any(line["logger"].startswith("dagster.daemon") for line in objects("".join(lines)))
