"""`dg dev`, which `make dev` calls."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.servers import CODE_LOCATION, REPOSITORY, clean_environment, free_port, script, webserver

pytestmark = pytest.mark.e2e


def test_dg_loads_the_same_code_location(tmp_path: Path) -> None:
    """`dg` reads pyproject.toml and `dagster dev` workspace.yaml: both use the same location name."""
    env = clean_environment(tmp_path, DAGSTER_HOME=str(tmp_path))
    shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", tmp_path)
    checked = subprocess.run(
        [script("dg"), "check", "defs"],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    port = free_port()
    command = [script("dg"), "dev", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "dg.log"
    with webserver(command, cwd=REPOSITORY, env=env, log=log, port=port, stop=signal.SIGTERM) as server:
        data = server.ask(
            "query ($r: RepositorySelector!) { repositoryOrError(repositorySelector: $r) "
            "{ ... on Repository { sensors { name } schedules { name } } } }",
            r=CODE_LOCATION,
        )["repositoryOrError"]
    assert "new_manifests" in [sensor["name"] for sensor in data["sensors"]]
    assert {schedule["name"] for schedule in data["schedules"]} >= {"daily_verification", "catch_up"}
    output = log.read_text(encoding="utf-8")
    assert "Traceback" not in output
    assert "virtual environment" not in output + checked.stderr
