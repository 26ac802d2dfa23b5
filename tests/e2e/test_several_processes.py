"""docs/scale-out.md in real processes: one code server, one daemon and a webserver, with PostgreSQL and S3.

Dagster's instance is `deploy/dagster.yaml`, chosen by `DAGSTER_HOME` and not edited.
"""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import s3fs

from kyc_pipeline.deepxl.simulator import running_simulator
from tests.conftest import Landing
from tests.e2e.servers import (
    REPOSITORY,
    Webserver,
    clean_environment,
    free_port,
    running,
    script,
    webserver,
)
from tests.optional import optional_module
from tests.unit.postgres import running_postgres
from tests.unit.seaweed import running_seaweed, seaweed_program

pytestmark = pytest.mark.e2e
DAY = "2024-09-01"
BUCKET = "kyc"


@pytest.fixture
def environment(tmp_path: Path, landing: Landing) -> Iterator[dict[str, str]]:
    """What env.example and secrets.example ask for, and servers for it; one day is delivered."""
    optional_module("dagster_aws")
    landing.day(DAY, 3)
    for name in ("dagster", "kyc", "weed"):
        (tmp_path / name).mkdir()
    with ExitStack() as stack:
        postgres = stack.enter_context(running_postgres())
        url = stack.enter_context(running_seaweed(seaweed_program(), tmp_path / "weed"))
        simulator = stack.enter_context(running_simulator())
        keys = {"AWS_ACCESS_KEY_ID": "kyc", "AWS_SECRET_ACCESS_KEY": "kyc", "AWS_DEFAULT_REGION": "us-east-1"}
        store = s3fs.S3FileSystem(endpoint_url=url, key="kyc", secret="kyc", skip_instance_cache=True)
        store.makedirs(BUCKET)
        store.put(str(landing.root), f"{BUCKET}/landing", recursive=True)
        yield clean_environment(
            tmp_path,
            **keys,
            AWS_ENDPOINT_URL=url,
            DAGSTER_HOME=str(tmp_path / "dagster"),
            DAGSTER_POSTGRES_URL=postgres.create_database("dagster").replace("+psycopg", ""),
            DAGSTER_COMPUTE_LOGS_BUCKET=BUCKET,
            DEEPXL_BASE_URL=simulator.url,
            DEEPXL_API_TOKEN="any",
            KYC_HOME=str(tmp_path / "kyc"),
            KYC_LANDING=f"s3://{BUCKET}/landing",
            KYC_LAKE=f"s3://{BUCKET}/lake",
            KYC_LEDGER_URL=postgres.create_database("kyc"),
            KYC_PSEUDONYM_KEY="0123456789abcdef" * 4,
            KYC_LOG_FORMAT="json",
            PYTHONWARNINGS="ignore",
        )


@pytest.fixture
def server(environment: dict[str, str], tmp_path: Path) -> Iterator[Webserver]:
    """The three processes; yields the webserver."""
    home = tmp_path / "dagster"
    code_port, ui_port = free_port(), free_port()
    shutil.copy(REPOSITORY / "deploy" / "dagster.yaml", home)
    workspace = (REPOSITORY / "deploy" / "workspace.yaml").read_text(encoding="utf-8")
    workspace = workspace.replace("host: code-server", "host: 127.0.0.1").replace("4000", str(code_port))
    (home / "workspace.yaml").write_text(workspace, encoding="utf-8")
    at = ["--workspace", str(home / "workspace.yaml")]
    with ExitStack() as stack:

        def start(name: str, *options: str) -> None:
            command = [script("kyc-pipeline"), name, *options]
            log = tmp_path / f"{name}.log"
            stack.enter_context(running(command, cwd=tmp_path, env=environment, log=log, stop=signal.SIGTERM))

        start("code-server", "--port", str(code_port))
        start("daemon", *at)
        ui = [script("kyc-pipeline"), "ui", "--no-daemon", "--port", str(ui_port), *at]
        yield stack.enter_context(
            webserver(ui, cwd=tmp_path, env=environment, log=tmp_path / "ui.log", port=ui_port)
        )


def test_a_day_runs_and_its_logs_are_in_the_bucket(
    server: Webserver, environment: dict[str, str], tmp_path: Path
) -> None:
    run_id = server.launch("verify_and_publish", DAY)
    assert server.finished(run_id) == "SUCCESS"
    store = s3fs.S3FileSystem(
        endpoint_url=environment["AWS_ENDPOINT_URL"], key="kyc", secret="kyc", skip_instance_cache=True
    )
    assert store.find(f"{BUCKET}/lake/curated/verifications/date={DAY}")
    assert [name for name in store.find(f"{BUCKET}/compute-logs") if run_id in name]
    for name in ("code-server", "daemon", "ui"):
        lines = (tmp_path / f"{name}.log").read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if not line.startswith(("{", "Dagster UI on"))] == []
        assert all(json.loads(line)["level"] for line in lines if line.startswith("{"))
