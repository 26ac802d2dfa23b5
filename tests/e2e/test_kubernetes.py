"""The Helm chart: its pods, and the jobs of `K8sRunLauncher`, as containers of a stand-in for a cluster.

A pod has the user, the read-only root file system, the rights, the limit of memory and the volumes of its
specification. PostgreSQL and S3 are real servers.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from signal import SIGKILL

import pytest
import sqlalchemy as sa

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.schema import leases
from tests.conftest import Landing
from tests.e2e.containers import USER, Mount, container_host, private_network
from tests.e2e.kubernetes import Cluster
from tests.e2e.servers import REPOSITORY, Webserver, poll
from tests.faults import WaitsForTest
from tests.helm import helm_program, rendered, resources
from tests.optional import optional_module
from tests.unit.postgres import running_postgres
from tests.unit.seaweed import running_seaweed, seaweed_program

pytestmark = [pytest.mark.e2e, pytest.mark.scale]

JOB = "verify_and_publish"
SIMPLE, KILLED, TERMINATED, DRAINED = "2024-09-01", "2024-09-02", "2024-09-03", "2024-09-04"
IN_FLIGHT = 4
DEPLOYMENTS = ("kyc-code-server", "kyc-daemon", "kyc-webserver")
KEYS = {"AWS_ACCESS_KEY_ID": "kyc", "AWS_SECRET_ACCESS_KEY": "kyc"}
DELIVER = """\
import s3fs

store = s3fs.S3FileSystem()
store.makedirs("kyc")
store.put("/landing/", "kyc/landing/", recursive=True)
"""
LOGS = "import s3fs; print(s3fs.S3FileSystem().find('kyc/compute-logs'))"
PASSWORD = "made-up-password"


@dataclass(frozen=True)
class Site:
    """A release of the chart, and what its test sees."""

    cluster: Cluster
    server: Webserver
    simulator: Simulator
    responses: dict[str, WaitsForTest]
    ledger_url: str

    def recorded(self, day: str) -> int:
        """How many calls of the day the simulator has processed."""
        return sum(tag.value.startswith(day) for record in self.simulator.records for tag in record.tags)

    def received(self, day: str) -> list[int]:
        """How often the simulator received each submission of the day that it received."""
        return [count for id_, count in self.simulator.received.items() if id_.startswith(day)]

    def launch(self, day: str) -> str:
        """Launches the day's run, and waits until it has calls in flight; returns the run's id."""
        run = self.server.launch(JOB, day)
        self.server.wait(lambda: self.recorded(day) == IN_FLIGHT, "calls in flight")
        return run

    def retried(self, run: str) -> str:
        """The id of the run that Dagster starts in the place of this one."""
        return str(
            self.server.wait(lambda: self.server.runs(dagster__parent_run_id=run), "a second run")[0]["runId"]
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    optional_module("dagster_k8s")
    folder = tmp_path_factory.mktemp("cluster")
    landing = Landing(folder / "landing")
    responses = {day: WaitsForTest() for day in (KILLED, TERMINATED, DRAINED)}
    faults = {id_: [wait] for day, wait in responses.items() for id_ in landing.day(day, 3 * IN_FLIGHT)}
    landing.day(SIMPLE, 3)
    for name in ("weed", "pods"):
        (folder / name).mkdir()
    with ExitStack() as stack:
        stack.enter_context(private_network())
        postgres = stack.enter_context(running_postgres("-h 127.0.0.1"))
        databases = {
            name: postgres.create_database(name).replace(str(postgres.socket), "127.0.0.1")
            for name in ("kyc", "dagster")
        }
        s3 = stack.enter_context(running_seaweed(seaweed_program(), folder / "weed"))
        simulator = stack.enter_context(running_simulator(token="any", seed=21, faults=faults))
        values = {
            "env": {
                "AWS_ENDPOINT_URL": s3,
                "DEEPXL_BASE_URL": simulator.url,
                "DEEPXL_MAX_CONCURRENCY": str(IN_FLIGHT),
                "DEEPXL_REQUESTS_PER_SECOND": "0",
            },
            "dagster": {"run_monitoring": {"poll_interval_seconds": 1}},
        }
        (folder / "values.yaml").write_text(json.dumps(values), encoding="utf-8")
        secrets = {
            "DEEPXL_API_TOKEN": "any",
            "KYC_PSEUDONYM_KEY": "0123456789abcdef" * 4,
            "KYC_UI_PASSWORD": PASSWORD,
            "KYC_LEDGER_URL": databases["kyc"],
            "DAGSTER_POSTGRES_URL": databases["dagster"].replace("+psycopg", ""),
            **KEYS,
        }
        assert set(secrets) == secrets_of_the_example() - {"POSTGRES_PASSWORD"}
        release = resources(rendered(helm_program(folder), f"--values={folder / 'values.yaml'}"))
        host = stack.enter_context(container_host(folder / "pods", DEPLOYMENTS))
        delivery = host.start(
            "delivery",
            ["python", "-c", DELIVER],
            env={"AWS_ENDPOINT_URL": s3, "AWS_DEFAULT_REGION": "eu-central-1", **KEYS},
            mounts=[Mount("/tmp"), Mount("/landing", landing.root, read_only=True)],
        )
        assert delivery.wait() == 0, delivery.log.read_text()
        cluster = Cluster(host, folder, release, {"kyc-secrets": secrets})
        stack.enter_context(cluster.serving())
        cluster.start_deployments()
        for name in DEPLOYMENTS:
            log = folder / "pods" / f"{name}.log"
            poll(partial(cluster.is_ready, name), f"{name} to be ready", log=log)
        server = Webserver("http://127.0.0.1:3000", folder / "pods" / "kyc-webserver.log", PASSWORD)
        server.wait_until_loaded()
        for waiting in responses.values():
            stack.callback(waiting.go.set)
        yield Site(cluster, server, simulator, responses, databases["kyc"])
        assert cluster.refused == []


def secrets_of_the_example() -> set[str]:
    text = (REPOSITORY / "deploy" / "secrets.example").read_text(encoding="utf-8")
    return set(re.findall(r"^([A-Z_]+)=", text, re.MULTILINE))


def test_a_run_is_a_job_that_writes_only_where_it_may(site: Site) -> None:
    run = site.server.launch(JOB, SIMPLE)
    assert site.server.finished(run) == "SUCCESS"
    assert site.received(SIMPLE) == [1, 1, 1]
    assert site.cluster.pod_of(run).container.wait() == 0
    published = site.cluster.claim("kyc-published")
    assert {path.stat().st_uid for path in published.rglob("*")} == {USER}
    assert (published / "warehouse" / "kyc.duckdb").exists()
    container = site.cluster.pods["kyc-daemon"].container
    assert run in container.run("python", "-c", LOGS).stdout
    for path in ("/", "/usr", "/etc/dagster", "/data"):
        assert container.run("touch", f"{path}/x").returncode != 0
    assert container.run("id", "-u").stdout.strip() == str(USER)


def test_a_run_whose_pod_was_killed_starts_again_and_pays_once(site: Site) -> None:
    """The new pod is on another node, as it were: it cannot see whether the killed one still runs."""
    run = site.launch(KILLED)
    with Ledger(site.ledger_url) as ledger, ledger.write() as connection:
        connection.execute(sa.update(leases).values(machine="another", host="far"))
    site.cluster.pod_of(run).container.signal(SIGKILL)
    assert site.server.finished(run) == "FAILURE"
    site.responses[KILLED].go.set()
    assert site.server.finished(site.retried(run)) == "SUCCESS"
    assert site.received(KILLED) == [1] * 3 * IN_FLIGHT


def test_a_terminated_run_is_cancelled_and_pays_no_more(site: Site) -> None:
    run = site.launch(TERMINATED)
    site.server.terminate(run)
    site.responses[TERMINATED].go.set()
    assert site.server.finished(run) == "CANCELED"
    assert site.cluster.pod_of(run).container.wait() == 0
    assert site.received(TERMINATED) == [1] * IN_FLIGHT
    assert site.server.finished(site.server.launch(JOB, TERMINATED)) == "SUCCESS"
    assert site.received(TERMINATED) == [1] * 3 * IN_FLIGHT


def test_a_run_on_a_drained_node_records_its_calls_and_starts_again(site: Site) -> None:
    run = site.launch(DRAINED)
    pod = site.cluster.pod_of(run)
    site.cluster.delete(pod.name)
    site.responses[DRAINED].go.set()
    assert pod.container.wait() != 128 + SIGKILL
    assert site.server.finished(run) == "FAILURE"
    assert site.received(DRAINED) == [1] * IN_FLIGHT
    assert site.server.finished(site.retried(run)) == "SUCCESS"
    assert site.received(DRAINED) == [1] * 3 * IN_FLIGHT
