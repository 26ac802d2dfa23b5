"""A real daemon: sensor, backfill, killed worker, terminated run, cancelled backfill, publication, alert."""

import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.faults import Fault, Hangs
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import LABEL_TABLES, VERIFICATION_RESPONSES
from tests.conftest import Landing
from tests.dagster import endings
from tests.dagster.endings import Interruption
from tests.e2e.servers import (
    DAILY_ASSETS,
    REPOSITORY,
    Webserver,
    clean_environment,
    free_port,
    poll,
    script,
    webserver,
)
from tests.faults import WaitsForTest
from tests.receiver import Receiver, receiving

pytestmark = pytest.mark.e2e

TOKEN = "test-token"
JOB = "verify_and_publish"
IN_FLIGHT = 4
TERMINATED, KILLED, WATCHED = "2024-09-04", "2024-09-05", "2024-09-10"
CANCELLED = ("2024-09-12", "2024-09-13")
BACKFILLED = {TERMINATED: 3 * IN_FLIGHT, KILLED: 3, "2024-09-06": 3}
"""Submissions by day."""


@dataclass(frozen=True)
class Site:
    """A running pipeline: folders, simulator, Dagster's webserver, daemon and code server."""

    folder: Path
    simulator: Simulator
    server: Webserver
    responses: WaitsForTest
    alerts: list[dict[str, Any]]
    cancelled: str
    """The backfill of `CANCELLED`, whose calls wait for `later`."""
    later: WaitsForTest

    @property
    def landing(self) -> Landing:
        return Landing(self.folder / "landing")

    def outcomes(self, day: str) -> dict[str, str]:
        """Outcome by submission id, from the lake."""
        rows = Lake(str(self.folder / "lake")).read(VERIFICATION_RESPONSES, day, ["submission_id", "outcome"])
        return {row["submission_id"]: row["outcome"] for row in rows.to_pylist()}

    def recorded(self, day: str) -> int:
        """How many calls of the day the simulator has processed."""
        ids = [tag.value for record in self.simulator.records for tag in record.tags]
        return sum(id_.startswith(day) for id_ in ids)

    def received(self, day: str) -> Counter[str]:
        """How often the simulator received each submission of the day."""
        return Counter({id_: n for id_, n in self.simulator.received.items() if id_.startswith(day)})

    def worker(self, run_id: str) -> int:
        """The process id of the run's worker, from the run's log."""
        query = (
            "query ($id: ID!) { logsForRun(runId: $id) "
            "{ ... on EventConnection { events { ... on MessageEvent { message } } } } }"
        )
        events = self.server.ask(query, id=run_id)["logsForRun"]["events"]
        found = [re.search(r"\(pid: (\d+)\)", event.get("message", "")) for event in events]
        return next(int(match.group(1)) for match in found if match)

    def logged(self, run_id: str) -> str:
        """The messages of the run's log, one a line."""
        with dg.DagsterInstance.from_config(str(self.folder / "dagster_home")) as instance:
            return "\n".join(entry.message for entry in instance.all_logs(run_id))

    def ended_as(self, interruption: Interruption, run_id: str) -> None:
        """Asserts what Dagster says of a run that somebody ended."""
        assert self.server.finished(run_id) in interruption.run.split(" or ")
        assert interruption.log in self.logged(run_id)
        if interruption is endings.CANCELLED:
            return  # its calls end by themselves, and then the daemon may be early or late
        with dg.DagsterInstance.from_config(str(self.folder / "dagster_home")) as instance:
            events = [entry.dagster_event for entry in instance.all_logs(run_id) if entry.dagster_event]
        made = {event.asset_key for event in events if event.is_step_materialization}
        made |= {
            event.asset_check_evaluation_data.asset_key
            for event in events
            if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
        }
        of_labels = {dg.AssetKey(table.name) for table in LABEL_TABLES}
        assert made - of_labels == {dg.AssetKey("submissions"), dg.AssetKey("rejected_submissions")}

    def told(self, run_id: str) -> list[dict[str, Any]]:
        """The alerts about the run."""
        return [alert for message in self.alerts for alert in message["alerts"] if run_id in alert["runs"]]

    def sensor_runs(self, day: str) -> list[str]:
        """The statuses of the runs that the sensor started for the day."""
        runs = self.server.runs(dagster__sensor_name="new_manifests", dagster__partition=day)
        return [run["status"] for run in runs]

    def warehouse_outcomes(self, day: str) -> list[tuple[str, int]]:
        """(outcome, submissions) of the day, from the published warehouse."""
        if not (file := self.folder / "warehouse" / "kyc.duckdb").exists():
            return []
        with duckdb.connect(str(file), read_only=True) as warehouse:
            return warehouse.execute(
                "SELECT outcome, count(*) FROM submissions WHERE date = ?::DATE GROUP BY outcome", [day]
            ).fetchall()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    home = folder / "dagster_home"
    home.mkdir()
    shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", home)
    landing = Landing(folder / "landing")
    ids = {day: landing.day(day, count) for day, count in BACKFILLED.items()}
    cancelled = [id_ for day in CANCELLED for id_ in landing.day(day, IN_FLIGHT)]
    responses, later = WaitsForTest(), WaitsForTest()
    faults: dict[str, Sequence[Fault]] = {
        **{id_: [Hangs(record=True)] for id_ in ids[KILLED][:2]},
        **{id_: [responses] for id_ in ids[TERMINATED]},
        **{id_: [later] for id_ in cancelled},
    }
    port = free_port()
    command = [script("dagster"), "dev", "-w", str(REPOSITORY / "workspace.yaml")]
    with running_simulator(token=TOKEN, seed=11, faults=faults) as simulator, receiving(Receiver()) as hook:
        env = clean_environment(
            folder,
            DAGSTER_HOME=str(home),
            DEEPXL_BASE_URL=simulator.url,
            DEEPXL_API_TOKEN=TOKEN,
            DEEPXL_REQUESTS_PER_SECOND="0",
            DEEPXL_MAX_CONCURRENCY=str(IN_FLIGHT),
            DEEPXL_TIMEOUT_SECONDS="600",
            KYC_ALERT_WEBHOOK=hook.url,
            KYC_LANDING=str(folder / "landing"),
            KYC_LAKE=str(folder / "lake"),
            KYC_LEDGER_URL=f"sqlite:///{folder / 'ledger.sqlite'}",
            KYC_WAREHOUSE=str(folder / "warehouse" / "kyc.duckdb"),
            KYC_REPORT=str(folder / "report" / "index.html"),
        )
        command += ["-h", "127.0.0.1", "-p", str(port)]
        with webserver(command, cwd=folder, env=env, log=folder / "dagster.log", port=port) as server:
            # The daemon looks for backfills every 30 s: start this one before the first test.
            cancelled_later = server.start_backfill(CANCELLED)
            try:
                yield Site(folder, simulator, server, responses, hook.bodies, cancelled_later, later)
            finally:  # where a test failed, its calls would keep Dagster from ending
                responses.go.set()
                later.go.set()


def test_a_terminated_run_records_the_calls_in_flight(site: Site) -> None:
    run = site.server.launch(JOB, TERMINATED, *DAILY_ASSETS)
    poll(lambda: site.recorded(TERMINATED) == IN_FLIGHT, "calls in flight", log=site.server.log)
    site.server.terminate(run)
    assert site.server.status(run) in {"CANCELING", "CANCELED"}
    site.responses.go.set()
    site.ended_as(endings.TERMINATED, run)
    sent, outcomes = set(site.received(TERMINATED)), site.outcomes(TERMINATED)
    assert {id_ for id_, outcome in outcomes.items() if outcome == "completed"} == sent
    assert {outcome for id_, outcome in outcomes.items() if id_ not in sent} <= {"not_attempted"}


@pytest.fixture(scope="module")
def backfill(site: Site) -> str:
    """The backfill of `BACKFILLED`, from the end of the terminated run on."""
    site.responses.go.set()  # for a test that runs without that of the terminated run
    site.server.start_sensor("publish_when_new")
    return site.server.start_backfill([*BACKFILLED])


def test_a_backfill_whose_worker_is_killed_continues_and_pays_nothing_twice(
    site: Site, backfill: str
) -> None:
    """Nor does the day of the terminated run."""
    poll(lambda: site.recorded(KILLED) == 3, "calls, two of them without a response", log=site.server.log)
    [killed] = site.server.runs(dagster__backfill=backfill)
    os.kill(site.worker(killed["runId"]), signal.SIGKILL)
    site.server.wait(lambda: site.server.backfill_ended(backfill), "the end of the backfill")
    again, before = site.server.runs(dagster__backfill=backfill)
    assert (again["status"], before["status"]) == ("SUCCESS", "FAILURE")
    assert again["tags"]["dagster/parent_run_id"] == before["runId"] == killed["runId"]
    site.ended_as(endings.KILLED, killed["runId"])
    for day, count in BACKFILLED.items():
        assert set(site.outcomes(day).values()) == {"completed"}
        assert list(site.received(day).values()) == [1] * count
    # The terminated day was run again, so no partition is failed.
    assert site.server.partition_stats("verifications") == {
        "numMaterialized": len(BACKFILLED),
        "numFailed": 0,
        "numMaterializing": len(CANCELLED),
    }


def test_the_killed_run_was_posted_to_the_webhook(site: Site, backfill: str) -> None:
    [killed] = [r for r in site.server.runs(dagster__backfill=backfill) if r["status"] == "FAILURE"]

    site.server.wait(lambda: site.told(killed["runId"]), "the alert")
    [alert] = site.told(killed["runId"])
    assert (alert["kind"], alert["days"]) == (endings.KILLED.alert, list(BACKFILLED))


def test_a_cancelled_backfill_makes_no_further_call(site: Site) -> None:
    first, second = CANCELLED
    poll(lambda: site.recorded(first) == IN_FLIGHT, "calls in flight", log=site.server.log)
    [run] = site.server.runs(dagster__backfill=site.cancelled)
    query = "mutation ($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }"
    response = site.server.ask(query, id=site.cancelled)["cancelPartitionBackfill"]
    assert response == {"__typename": "CancelBackfillSuccess"}
    poll(lambda: endings.CANCELLED.log in site.logged(run["runId"]), "the stop", log=site.server.log)
    site.later.go.set()
    site.ended_as(endings.CANCELLED, run["runId"])
    assert set(site.outcomes(first).values()) == {"completed"}
    assert not site.received(second)


def test_the_backfill_is_published_by_automation(site: Site, backfill: str) -> None:
    def is_published() -> bool:
        return all(
            site.warehouse_outcomes(day) == [("completed", count)] for day, count in BACKFILLED.items()
        )

    site.server.wait(is_published, "the publication")
    # Not the backfill's own end: the daemon notices only later that its runs have ended.
    ended = max(run["endTime"] for run in site.server.runs(dagster__backfill=backfill))
    starts = [run["startTime"] for run in site.server.runs(kyc__trigger="publish_when_new")]
    assert 1 <= len(starts) <= len(BACKFILLED), "at least once, at most once per day"
    # The sensor looked while two calls waited for a response, while the killed run waited for its retry, and
    # while the other backfill waited to be cancelled.
    assert min(starts) > ended


def test_the_sensor_runs_a_new_manifest(site: Site) -> None:
    """And no day that is ingested. `test_new_manifests.py` changes manifests."""
    shutil.rmtree(site.folder / "landing" / "manifests" / CANCELLED[1])
    site.landing.day(WATCHED, 4)
    site.server.start_sensor("new_manifests")
    site.server.wait(lambda: site.sensor_runs(WATCHED) == ["SUCCESS"], "the run of the new manifest")
    assert len(site.server.runs(dagster__sensor_name="new_manifests")) == 1
    assert site.warehouse_outcomes(WATCHED) == [("completed", 4)]
    assert list(site.received(WATCHED).values()) == [1] * 4


def test_nobody_is_told_of_runs_that_were_ended_on_request(site: Site, backfill: str) -> None:
    # The sensor `alerts` has looked several times since.
    told = {run for message in site.alerts for alert in message["alerts"] for run in alert["runs"]}
    [killed] = [r for r in site.server.runs(dagster__backfill=backfill) if r["status"] == "FAILURE"]
    assert told == {killed["runId"]}
