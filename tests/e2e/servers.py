"""Helpers of the end-to-end tests: processes in their own session, GraphQL, and polling.

Tests do not sleep. They poll for a condition, and fail with the server's log after a timeout.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kyc_pipeline.settings import Settings

REPOSITORY = Path(__file__).parents[2]
CODE_LOCATION = {"repositoryName": "__repository__", "repositoryLocationName": "kyc_pipeline"}
DAILY_ASSETS = (
    "submissions",
    "rejected_submissions",
    "verification_responses",
    "verifications",
    "model_checks",
    "verification_tags",
    "verification_files",
    "contract_drift",
)
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}
START_SECONDS = 300.0
"""Far more than a start takes, because the machine may be busy."""
STOP_SECONDS = 180.0
POLL_SECONDS = 0.5
"""A look at the webserver takes processor time from what the test waits for."""
Value = TypeVar("Value")
_PAUSE = threading.Event()


def poll(
    look: Callable[[], Value | None], what: str, *, seconds: float = START_SECONDS, log: Path | None = None
) -> Value:
    """The first true result of `look`. On timeout, AssertionError with `what` and the end of the log."""
    for _ in range(int(seconds / POLL_SECONDS)):
        if found := look():
            return found
        _PAUSE.wait(POLL_SECONDS)
    tail = "" if log is None else "\n" + "\n".join(log.read_text(errors="replace").splitlines()[-40:])
    raise AssertionError(f"waited {seconds:.0f} s for {what}{tail}")


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def script(name: str) -> str:
    """The path of a console script in the tests' environment."""
    return str(Path(sys.executable).with_name(name))


def clean_environment(folder: Path, **changes: str) -> dict[str, str]:
    """The environment without the project's settings; `HOME` and `TMPDIR` are below `folder`."""
    names = {*(name.upper() for name in Settings.model_fields), "DAGSTER_HOME"}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in names}
    home, temporary = folder / "home", folder / "tmp"
    for path in (home, temporary):
        path.mkdir(exist_ok=True)
    return kept | {"HOME": str(home), "TMPDIR": str(temporary)} | changes


def _session_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, _parent, _group, session = stat.rpartition(")")[2].split()[:4]
    return None if state == "Z" else int(session)


def processes_of(session: int) -> list[int]:
    """The ids of the session's processes."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if _session_of(pid) == session]


@contextmanager
def running(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
    stop: signal.Signals = signal.SIGINT,
) -> Iterator[int]:
    """Runs `command` in a session of its own; yields the session's id.

    At the end, sends `stop` and waits until the session is empty: Ctrl-C to the process group, as a terminal
    does, any other signal to the process alone, as a service manager does.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=dict(env), stdout=output, stderr=output, start_new_session=True
        )
    session = process.pid
    try:
        yield session
        assert process.poll() is None, f"ended early:\n{log.read_text(errors='replace')[-4000:]}"
        (os.killpg if stop is signal.SIGINT else os.kill)(session, stop)
        process.wait(STOP_SECONDS)
        poll(lambda: not processes_of(session), "the end of every process", seconds=STOP_SECONDS, log=log)
    finally:
        for pid in processes_of(session):
            os.kill(pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True)
class Webserver:
    """A running Dagster webserver, queried through the UI's GraphQL API."""

    url: str
    log: Path
    password: str = ""
    session: int | None = None
    """The session of its process, where that is not in a container."""

    def ask(self, query: str, **variables: Any) -> Any:
        """The response's `data`. AssertionError if GraphQL reports errors."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        if self.password:
            login = base64.b64encode(f"any:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {login}")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                result = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                result = {"errors": error.read().decode(errors="replace")[:2000]}
        assert "errors" not in result, result["errors"]
        return result["data"]

    def wait_until_loaded(self) -> None:
        """Waits for the webserver and for the code location."""

        def loaded() -> bool:
            try:
                data = self.ask(
                    "{ workspaceOrError { ... on Workspace { locationEntries "
                    "{ name loadStatus locationOrLoadError { __typename } } } } }"
                )
            except OSError:
                ended = self.session is not None and not processes_of(self.session)
                assert not ended, f"the webserver ended:\n{self.log.read_text(errors='replace')[-4000:]}"
                return False
            entries = data["workspaceOrError"].get("locationEntries", [])
            return [
                (entry["name"], entry["loadStatus"], (entry["locationOrLoadError"] or {}).get("__typename"))
                for entry in entries
            ] == [("kyc_pipeline", "LOADED", "RepositoryLocation")]

        self.wait(loaded, "the webserver with the code location kyc_pipeline")

    def wait(self, look: Callable[[], Value | None], what: str) -> Value:
        """:func:`poll` with the server's log."""
        return poll(look, what, log=self.log)

    def start_sensor(self, name: str) -> None:
        """Turns a sensor on, like its switch in the UI."""
        response = self.ask(
            "mutation ($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) "
            "{ ... on Sensor { sensorState { status } } } }",
            sensor={**CODE_LOCATION, "sensorName": name},
        )["startSensor"]
        assert response == {"sensorState": {"status": "RUNNING"}}

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """The runs with these tags (`__` in a name means `/`), newest first: id, status, times, tags."""
        wanted = [{"key": key.replace("__", "/"), "value": value} for key, value in tags.items()]
        query = (
            "query ($f: RunsFilter!) { runsOrError(filter: $f) "
            "{ ... on Runs { results { runId status startTime endTime tags { key value } } } } }"
        )
        found: list[dict[str, Any]] = self.ask(query, f={"tags": wanted})["runsOrError"]["results"]
        return [{**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]

    def status(self, run_id: str) -> str:
        """The run's current status."""
        query = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
        return str(self.ask(query, id=run_id)["runOrError"]["status"])

    def finished(self, run_id: str) -> str:
        """The run's final status."""
        self.wait(lambda: self.status(run_id) in FINISHED, f"the end of run {run_id}")
        return self.status(run_id)

    def launch(self, job: str, day: str, *assets: str) -> str:
        """Launches the job, or only its `assets`, for one day, like the launchpad; returns the run's id."""
        selected = {"assetSelection": [{"path": [asset]} for asset in assets]} if assets else {}
        response = self.ask(
            "mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) "
            "{ __typename ... on LaunchRunSuccess { run { runId } } } }",
            params={
                "selector": {**CODE_LOCATION, "jobName": job, **selected},
                "runConfigData": {},
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": day}]},
            },
        )["launchRun"]
        assert response["__typename"] == "LaunchRunSuccess"
        return str(response["run"]["runId"])

    def terminate(self, run_id: str) -> None:
        """Like "Terminate" in the UI."""
        query = "mutation ($id: String!) { terminateRun(runId: $id) { __typename } }"
        response = self.ask(query, id=run_id)["terminateRun"]
        assert response == {"__typename": "TerminateRunSuccess"}, response

    def start_backfill(self, days: Sequence[str]) -> str:
        """Launches a backfill of the daily assets, like the Materialize button; returns its id."""
        response = self.ask(
            "mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) "
            "{ __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
            params={
                "partitionNames": list(days),
                "assetSelection": [{"path": [asset]} for asset in DAILY_ASSETS],
                "fromFailure": False,
            },
        )["launchPartitionBackfill"]
        assert response["__typename"] == "LaunchBackfillSuccess", response
        return str(response["backfillId"])

    def backfill_ended(self, backfill_id: str) -> bool:
        """Whether the backfill has succeeded. AssertionError if it has failed."""
        query = (
            "query ($id: String!) { partitionBackfillOrError(backfillId: $id) "
            "{ ... on PartitionBackfill { status } } }"
        )
        status = self.ask(query, id=backfill_id)["partitionBackfillOrError"]["status"]
        assert "FAIL" not in status
        return bool(status == "COMPLETED_SUCCESS")

    def partition_stats(self, asset: str) -> dict[str, int]:
        """How many partitions of the asset are materialized, failed or in progress."""
        data = self.ask(
            "query ($key: [AssetKeyInput!]!) { assetNodes(assetKeys: $key) "
            "{ partitionStats { numMaterialized numFailed numMaterializing } } }",
            key=[{"path": [asset]}],
        )
        stats: dict[str, int] = data["assetNodes"][0]["partitionStats"]
        return stats


@contextmanager
def webserver(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
    port: int,
    stop: signal.Signals = signal.SIGINT,
) -> Iterator[Webserver]:
    """Runs `command`, which serves Dagster on `port`, until the block ends."""
    with running(command, cwd=cwd, env=env, log=log, stop=stop) as session:
        server = Webserver(f"http://127.0.0.1:{port}", log, session=session)
        server.wait_until_loaded()
        yield server
