"""The guide's section on Celery in real processes: Redis, PostgreSQL, two workers, code server and daemon.

Instance, workspace and the workers' command are those of deploy/ and docs/scale-out.md.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import yaml

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.faults import Fault, Hangs
from tests.conftest import Landing
from tests.e2e.servers import (
    REPOSITORY,
    Webserver,
    clean_environment,
    free_port,
    poll,
    processes_of,
    running,
    script,
    webserver,
)
from tests.faults import WaitsForTest
from tests.optional import optional_module
from tests.unit.postgres import running_postgres
from tests.unit.redis import RedisServer, running_redis

pytestmark = [pytest.mark.e2e, pytest.mark.scale]

JOB = "verify_and_publish"
TERMINATED, OUTLIVES = "2024-09-02", "2024-09-03"
BACKFILLED = ("2024-09-05", "2024-09-06", "2024-09-07")
IN_FLIGHT = 4
GUIDE = (REPOSITORY / "docs" / "scale-out.md").read_text(encoding="utf-8")
LOST_AFTER_SECONDS = 8


@dataclass(frozen=True)
class Site:
    """A running pipeline, and what tests do to it."""

    simulator: Simulator
    server: Webserver
    redis: RedisServer
    instance: dg.DagsterInstance
    responses: dict[str, WaitsForTest]
    folder: Path

    def log(self, name: str) -> Path:
        """Of a process."""
        return self.folder / f"{name}.log"

    def recorded(self, day: str) -> int:
        """How many calls of the day the simulator has processed."""
        return sum(tag.value.startswith(day) for record in self.simulator.records for tag in record.tags)

    def received(self, day: str) -> list[int]:
        """How often the simulator received each submission of the day that it received."""
        return [count for id_, count in self.simulator.received.items() if id_.startswith(day)]

    def logged(self, run_id: str) -> str:
        """The messages of the run's log."""
        return "\n".join(entry.message for entry in self.instance.all_logs(run_id))

    def runs_of(self, day: str) -> list[str]:
        """The statuses of the day's runs."""
        return [run["status"] for run in self.server.runs(dagster__partition=day)]


def dagster_yaml() -> str:
    """That of deploy/ with the guide's launcher, logs of steps on disk, and shorter times."""
    instance = yaml.safe_load((REPOSITORY / "deploy" / "dagster.yaml").read_text(encoding="utf-8"))
    del instance["compute_logs"]
    [launcher] = [block for block in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL) if "celery" in block]
    instance |= yaml.safe_load(launcher)
    instance["run_launcher"]["config"]["lost_after_seconds"] = LOST_AFTER_SECONDS
    instance["run_monitoring"]["poll_interval_seconds"] = 1
    return str(yaml.safe_dump(instance))


@contextmanager
def worker(name: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A worker by the guide's command, which a test may kill."""
    [command] = re.findall(r"^\$ (celery .*)$", GUIDE, re.MULTILINE)
    path = {"PATH": f"{Path(script('celery')).parent}:{environment['PATH']}"}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command} --hostname {name}@%h"],
            cwd=folder,
            env=environment | path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        kill(process.pid)
        process.wait()


def kill(session: int) -> None:
    """As if the power of the host went."""
    for pid in processes_of(session):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    optional_module("dagster_celery")
    folder = tmp_path_factory.mktemp("site")
    home = folder / "dagster"
    home.mkdir()
    (folder / "landing").mkdir()
    for name in ("manifests", "documents"):
        (folder / "landing" / name).mkdir()
    landing = Landing(folder / "landing")
    responses = {day: WaitsForTest() for day in (TERMINATED, OUTLIVES)}
    faults: dict[str, Sequence[Fault]] = {
        id_: [fault] for day, fault in responses.items() for id_ in landing.day(day, 3 * IN_FLIGHT)
    }
    first, *_ = [landing.day(day, 3) for day in BACKFILLED]
    faults |= {id_: [Hangs(record=True)] for id_ in first[:2]}
    code_port, ui_port = free_port(), free_port()
    with ExitStack() as stack:
        redis = stack.enter_context(running_redis(folder, free_port()))
        postgres = stack.enter_context(running_postgres())
        simulator = stack.enter_context(running_simulator(token="any", seed=21, faults=faults))
        environment = clean_environment(
            folder,
            CELERY_BROKER_URL=redis.url,
            DAGSTER_HOME=str(home),
            DAGSTER_POSTGRES_URL=postgres.create_database("dagster").replace("+psycopg", ""),
            DEEPXL_BASE_URL=simulator.url,
            DEEPXL_API_TOKEN="any",
            DEEPXL_REQUESTS_PER_SECOND="0",
            DEEPXL_MAX_CONCURRENCY=str(IN_FLIGHT),
            KYC_HOME=str(folder),
            KYC_LANDING=str(folder / "landing"),
            KYC_LAKE=str(folder / "lake"),
            KYC_LEDGER_URL=postgres.create_database("kyc"),
            KYC_PSEUDONYM_KEY="0123456789abcdef" * 4,
            KYC_WAREHOUSE=str(folder / "warehouse" / "kyc.duckdb"),
            KYC_REPORT=str(folder / "report" / "index.html"),
        )
        (home / "dagster.yaml").write_text(dagster_yaml(), encoding="utf-8")
        workspace = (REPOSITORY / "deploy" / "workspace.yaml").read_text(encoding="utf-8")
        workspace = workspace.replace("host: code-server", "host: 127.0.0.1").replace("4000", str(code_port))
        (home / "workspace.yaml").write_text(workspace, encoding="utf-8")
        at = ["--workspace", str(home / "workspace.yaml")]

        def start(name: str, *options: str) -> None:
            command = [script("kyc-pipeline"), name, *options]
            log = folder / f"{name}.log"
            stack.enter_context(running(command, cwd=folder, env=environment, log=log, stop=signal.SIGTERM))

        start("code-server", "--port", str(code_port))
        start("daemon", *at)
        for name in ("one", "two"):
            stack.enter_context(worker(name, folder, environment))
        ui = [script("kyc-pipeline"), "ui", "--no-daemon", "--port", str(ui_port), *at]
        server = stack.enter_context(
            webserver(ui, cwd=folder, env=environment, log=folder / "ui.log", port=ui_port)
        )
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("CELERY_BROKER_URL", "DAGSTER_POSTGRES_URL"):
            patch.setenv(name, environment[name])
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        for waiting in responses.values():
            stack.callback(waiting.go.set)
        yield Site(simulator, server, redis, instance, responses, folder)


def test_a_terminated_run_is_cancelled_and_pays_no_more(site: Site) -> None:
    run = site.server.launch(JOB, TERMINATED)
    site.server.wait(lambda: site.recorded(TERMINATED) == IN_FLIGHT, "calls in flight")
    site.server.terminate(run)
    site.responses[TERMINATED].go.set()
    assert site.server.finished(run) == "CANCELED"
    assert "terminated;" in site.logged(run)
    assert site.received(TERMINATED) == [1] * IN_FLIGHT
    assert site.server.finished(site.server.launch(JOB, TERMINATED)) == "SUCCESS"
    assert site.received(TERMINATED) == [1] * 3 * IN_FLIGHT
    assert sorted(site.runs_of(TERMINATED)) == ["CANCELED", "SUCCESS"]


def test_a_run_outlives_its_broker_and_no_second_one_starts_beside_it(site: Site) -> None:
    run = site.server.launch(JOB, OUTLIVES)
    site.server.wait(lambda: site.recorded(OUTLIVES) == IN_FLIGHT, "calls in flight")
    site.redis.kill()
    daemon = site.log("daemon")
    poll(
        lambda: f"Hit error while monitoring run {run}" in daemon.read_text(), "the daemon's word", log=daemon
    )
    assert site.server.status(run) == "STARTED"
    site.redis.start()
    site.responses[OUTLIVES].go.set()
    assert site.server.finished(run) == "SUCCESS"
    assert site.runs_of(OUTLIVES) == ["SUCCESS"]
    assert site.received(OUTLIVES) == [1] * 3 * IN_FLIGHT


def test_a_backfill_continues_on_the_other_worker_when_one_is_lost(site: Site) -> None:
    backfill = site.server.start_backfill(BACKFILLED)
    first = BACKFILLED[0]
    site.server.wait(lambda: site.recorded(first) == 3, "calls, two of them without a response")
    [run] = site.server.runs(dagster__backfill=backfill)
    [pid] = re.findall(r"Started process for run \(pid: (\d+)\)", site.logged(run["runId"]))
    lost = os.getsid(int(pid))
    os.kill(lost, signal.SIGKILL)
    poll(lambda: not processes_of(lost), "the end of the run with its worker")
    assert site.server.finished(run["runId"]) == "FAILURE"
    assert "no worker has had it for" in site.logged(run["runId"])
    site.server.wait(lambda: site.server.backfill_ended(backfill), "the end of the backfill")
    again, before = site.server.runs(dagster__backfill=backfill)
    assert (again["status"], before["runId"]) == ("SUCCESS", run["runId"])
    assert again["tags"]["dagster/parent_run_id"] == run["runId"]
    for day in BACKFILLED:
        assert site.received(day) == [1, 1, 1]
