"""The alert of a failed run, posted to a real HTTP server on loopback."""

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import dagster as dg
import pytest
from pydantic import SecretStr

from kyc_pipeline.definitions import build_defs
from kyc_pipeline.errors import KycError
from kyc_pipeline.orchestration.alerts import ATTEMPTS, partition_range, post
from kyc_pipeline.orchestration.jobs import range_tags
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from tests.conftest import Landing

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
SECRET_PATH = "/hooks/very-secret-key"


@dataclass
class Hook:
    """A webhook: the bodies that it received, and the statuses with which it responds before it accepts."""

    url: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == SECRET_PATH
            hook.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(hook.statuses.pop(0) if hook.statuses else 204)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keeps the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        hook.url = f"http://127.0.0.1:{server.server_address[1]}{SECRET_PATH}"
        yield hook
        server.shutdown()
        thread.join()


def failed_run(
    landing: Landing, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> dg.ExecuteInProcessResult:
    landing.day(DAY, 1)
    bad = landing.root / "manifests" / NEXT_DAY / "jane-roe.csv"
    bad.parent.mkdir()
    bad.write_text("name,photo\nx,y\n")
    job = definitions.resolve_job_def("verify_and_publish")
    run = job.execute_in_process(instance=instance, tags=range_tags(DAY, NEXT_DAY), raise_on_error=False)
    assert not run.success
    return run


def evaluate(
    definitions: dg.Definitions, instance: dg.DagsterInstance, run: dg.ExecuteInProcessResult
) -> object:
    context = dg.build_run_status_sensor_context(
        sensor_name="alert_on_failure",
        dagster_event=run.get_run_failure_event(),
        dagster_instance=instance,
        dagster_run=run.dagster_run,
        resources=definitions.resources,
    ).for_run_failure()
    return definitions.resolve_sensor_def("alert_on_failure")(context)


def test_a_failed_run_is_posted_once_without_its_error_message(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance, hook: Hook
) -> None:
    webhook = settings.model_copy(update={"kyc_alert_webhook": SecretStr(hook.url)})
    definitions = build_defs(Pipeline(webhook))
    run = failed_run(landing, definitions, instance)
    evaluate(definitions, instance, run)
    [body] = hook.bodies
    assert body | {"text": ""} == {
        "text": "",
        "event": "run_failed",
        "run_id": run.run_id,
        "job": "verify_and_publish",
        "partitions": f"{DAY}..{NEXT_DAY}",
        "failed_steps": ["ingest"],
        "trigger": None,
    }
    assert "jane" not in json.dumps(body)


def test_without_a_webhook_nothing_is_posted(
    landing: Landing, pipeline: Pipeline, instance: dg.DagsterInstance, hook: Hook
) -> None:
    definitions = build_defs(pipeline)
    result = evaluate(definitions, instance, failed_run(landing, definitions, instance))
    assert isinstance(result, dg.SkipReason)
    assert not hook.bodies


@pytest.mark.parametrize(("webhook", "status"), [(None, "STOPPED"), ("https://hooks.example/x", "RUNNING")])
def test_the_alert_is_on_by_default_if_a_webhook_is_configured(
    settings: Settings, webhook: str | None, status: str
) -> None:
    changed = settings.model_copy(update={"kyc_alert_webhook": webhook and SecretStr(webhook)})
    sensor = build_defs(Pipeline(changed)).resolve_sensor_def("alert_on_failure")
    assert sensor.default_status is dg.DefaultSensorStatus[status]


def test_a_busy_webhook_is_retried(hook: Hook) -> None:
    hook.statuses = [503, 429]
    post(SecretStr(hook.url), {"text": "x"}, pause_seconds=0)
    assert hook.bodies == [{"text": "x"}] * 3


def test_a_webhook_that_refuses_raises_an_error_without_its_url(hook: Hook) -> None:
    hook.statuses = [404] * ATTEMPTS
    with pytest.raises(KycError, match="KYC_ALERT_WEBHOOK cannot be used: it responded with 404") as caught:
        post(SecretStr(hook.url), {"text": "x"}, pause_seconds=0)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"dagster/partition": DAY}, DAY),
        (range_tags(DAY, DAY), DAY),
        (range_tags(DAY, NEXT_DAY), f"{DAY}..{NEXT_DAY}"),
        ({}, None),
    ],
)
def test_partition_range(tags: dict[str, str], expected: str | None) -> None:
    assert partition_range(tags) == expected
