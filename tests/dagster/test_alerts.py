"""Alerts, delivered to a real HTTP server and a real SMTP server on loopback."""

import datetime
import email
import email.policy
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import HTML_502
from kyc_pipeline.definitions import build_defs
from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.manifests import stray_line
from kyc_pipeline.lake.tables import VERIFICATIONS
from kyc_pipeline.ledger.decisions import resolve_held
from kyc_pipeline.orchestration.alerts import conditions
from kyc_pipeline.orchestration.alerts import sensor as alerts_sensor
from kyc_pipeline.orchestration.alerts.channels import Email, Webhook, channels
from kyc_pipeline.orchestration.alerts.conditions import WAIT_FOR_BACKFILL_SECONDS, Reported
from kyc_pipeline.orchestration.alerts.model import RULES, Alert, Kind, Message, days_text
from kyc_pipeline.orchestration.alerts.sensor import RETRY_MAX_SECONDS, deliver
from kyc_pipeline.orchestration.jobs import BACKFILL, range_tags
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.publication import WAREHOUSE
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.dispatcher import Timing
from tests.conftest import Landing
from tests.dagster.conftest import DAILY
from tests.e2e.servers import free_port
from tests.receiver import Receiver, receiving

DAY, NEXT_DAY = "2024-09-08", "2024-09-09"
SECRET_PATH = "/hooks/very-secret-key"
UI = "https://dagster.example"
MESSAGE = Message([Alert(Kind.HELD, "2 <held> & more", ("a line",), f"{UI}/assets/x", (DAY,))])
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


class Hook(Receiver):
    """A webhook for alerts."""

    @property
    def channel(self) -> Webhook:
        return Webhook(SecretStr(self.url))

    @property
    def alerts(self) -> list[tuple[str, str]]:
        """Kind and title of all that was posted."""
        return [(alert["kind"], alert["title"]) for body in self.bodies for alert in body["alerts"]]


@pytest.fixture
def hook() -> Iterator[Hook]:
    with receiving(Hook(), SECRET_PATH) as hook:
        yield hook


@pytest.fixture
def pipeline(settings: Settings) -> Pipeline:
    return Pipeline(settings.model_copy(update={"kyc_ui_url": UI}))


@pytest.fixture
def job(pipeline: Pipeline) -> dg.JobDefinition:
    controls = CallControls(timing=Timing(look_ups=(0.0,), back_off=0.0, breaker_waits=(0.0,)))
    return build_defs(pipeline, controls, publication=False).resolve_job_def("verify_and_publish")


@dataclass
class Sensor:
    """The sensor's ticks, one after the other."""

    pipeline: Pipeline
    instance: dg.DagsterInstance
    hook: Hook
    cursor: str | None = None
    failures: list[str] = field(default_factory=list)

    def tick(self, later: float = 0.0) -> list[tuple[str, str]]:
        """The alerts that this tick delivers."""
        before = len(self.hook.alerts)
        self.cursor, _, self.failures = deliver(
            self.pipeline, self.instance, [self.hook.channel], self.cursor, time.time() + later
        )
        return self.hook.alerts[before:]


@pytest.fixture
def sensor(pipeline: Pipeline, instance: dg.DagsterInstance, hook: Hook) -> Sensor:
    return Sensor(pipeline, instance, hook)


def bad_manifest(landing: Landing, day: str) -> None:
    bad = landing.root / "manifests" / day / "jane-roe.csv"
    bad.parent.mkdir(exist_ok=True)
    bad.write_text("name,photo\nx,y\n")


def run_days(
    job: dg.JobDefinition, instance: dg.DagsterInstance, first: str, last: str, **tags: str
) -> dg.ExecuteInProcessResult:
    return job.execute_in_process(
        instance=instance,
        tags={**range_tags(first, last), **tags},
        asset_selection=DAILY,
        raise_on_error=False,
    )


def test_a_failed_run_is_told_once_with_its_page_and_without_its_message(
    landing: Landing, job: dg.JobDefinition, instance: dg.DagsterInstance, sensor: Sensor, hook: Hook
) -> None:
    bad_manifest(landing, NEXT_DAY)
    landing.day(DAY, 1)
    run = run_days(job, instance, DAY, NEXT_DAY)
    assert not run.success
    title = f"1 run failed (2 days: {DAY}, {NEXT_DAY})"
    assert sensor.tick() == [("run_failed", title)]
    [[alert]] = [body["alerts"] for body in hook.bodies]
    assert alert["link"] == f"{UI}/runs/{run.run_id}"
    assert (alert["days"], alert["runs"]) == ([DAY, NEXT_DAY], [run.run_id])
    [line] = alert["lines"]
    assert (
        line == f"run {run.run_id[:8]} of verify_and_publish for 2 days: {DAY}, {NEXT_DAY}: failed at ingest"
    )
    assert "jane" not in json.dumps(hook.bodies)
    assert sensor.tick() == sensor.tick(later=3600) == []


def test_what_happened_long_before_the_sensor_was_on_is_not_told(
    job: dg.JobDefinition, instance: dg.DagsterInstance, sensor: Sensor
) -> None:
    failed_run(job, instance)
    assert sensor.tick(later=2 * 3600) == []


def failed_run(
    job: dg.JobDefinition, instance: dg.DagsterInstance, first: str = DAY, last: str = "", **tags: str
) -> dg.DagsterRun:
    """A run whose process was killed: Dagster records nothing else of it."""
    ingest = job.get_subset(asset_selection=set(DAILY[:2]))  # Dagster also records what a run will make
    run = instance.create_run_for_job(ingest, tags={**range_tags(first, last or first), **tags})
    instance.report_run_failed(run)
    return run


def test_a_run_of_another_code_location_does_not_silence_the_alerts(
    job: dg.JobDefinition, instance: dg.DagsterInstance, sensor: Sensor
) -> None:
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["eu"]))
    def theirs() -> None:
        raise ValueError

    assert not dg.materialize([theirs], instance=instance, partition_key="eu", raise_on_error=False).success
    failed_run(job, instance)
    assert sensor.tick() == [("run_failed", f"2 runs failed ({DAY})")]


def test_the_runs_of_a_backfill_of_sixty_days_are_one_message(
    job: dg.JobDefinition, instance: dg.DagsterInstance, sensor: Sensor, hook: Hook
) -> None:
    queued = instance.create_run_for_job(job, tags={BACKFILL: "abcdefgh"})
    for number in range(6):
        first = datetime.date(2024, 9, 1) + datetime.timedelta(days=10 * number)
        last = first + datetime.timedelta(days=9)
        failed_run(job, instance, first.isoformat(), last.isoformat(), **{BACKFILL: "abcdefgh"})
        assert sensor.tick() == []
    instance.report_run_canceled(queued)
    assert sensor.tick() == [
        ("run_failed", "6 runs failed (60 days: 2024-09-01, 2024-09-02, 2024-09-03 and 57 more)")
    ]
    [alert] = hook.bodies[0]["alerts"]
    assert alert["link"] == f"{UI}/runs/b/abcdefgh"
    assert len(alert["lines"]) == 6
    assert alert["lines"][-1] == "and 1 more"
    assert "failed at no step" in alert["lines"][0]
    assert len(alert["days"]) == 60
    assert sensor.tick() == []


def test_a_backfill_that_takes_long_is_told_before_it_ends(
    job: dg.JobDefinition, instance: dg.DagsterInstance, sensor: Sensor
) -> None:
    failed_run(job, instance, **{BACKFILL: "abcdefgh"})
    instance.create_run_for_job(job, tags={BACKFILL: "abcdefgh"})
    assert sensor.tick() == []
    assert sensor.tick(later=WAIT_FOR_BACKFILL_SECONDS - 60) == []
    assert sensor.tick(later=WAIT_FOR_BACKFILL_SECONDS + 1) == [("run_failed", f"1 run failed ({DAY})")]
    assert sensor.tick(later=WAIT_FOR_BACKFILL_SECONDS + 2) == []


def test_a_failed_delivery_is_tried_again_with_what_came_since_and_then_not_repeated(
    job: dg.JobDefinition, instance: dg.DagsterInstance, sensor: Sensor, hook: Hook
) -> None:
    failed_run(job, instance)
    hook.statuses = [503, 404]
    assert sensor.tick() == []
    [failure] = sensor.failures
    assert failure == "KYC_ALERT_WEBHOOK: not delivered (it responded with 503); tried again in 60 s"
    assert sensor.tick(later=30) == []
    assert not sensor.failures
    assert sensor.tick(later=90) == []
    assert "tried again in 120 s" in sensor.failures[0]
    failed_run(job, instance)
    assert sensor.tick(later=240) == [("run_failed", f"2 runs failed ({DAY})")]
    assert sensor.tick(later=300) == []
    assert len(hook.bodies) == 1


def test_a_channel_that_fails_does_not_make_the_other_one_repeat_itself(
    job: dg.JobDefinition, pipeline: Pipeline, instance: dg.DagsterInstance, hook: Hook
) -> None:
    failed_run(job, instance)
    dead = Webhook(SecretStr("http://127.0.0.1:1/very-secret-key"), name="DEAD")
    cursor: str | None = None
    for tick in range(10):
        cursor, _, failures = deliver(
            pipeline, instance, [dead, hook.channel], cursor, time.time() + tick * RETRY_MAX_SECONDS
        )
        assert "secret" not in f"{cursor} {failures}"
        assert "DEAD: not delivered" in failures[0]
    assert "tried again in 3600 s" in failures[0]
    assert hook.alerts == [("run_failed", f"1 run failed ({DAY})")]


def test_a_delivery_that_takes_too_long_fails_before_the_tick_does(
    job: dg.JobDefinition, pipeline: Pipeline, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster would end the tick and keep the old cursor, so that the other channel repeats its message."""
    monkeypatch.setattr(alerts_sensor, "DELIVERY_SECONDS", 0.01)
    failed_run(job, instance)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        slow = Webhook(SecretStr(f"http://127.0.0.1:{silent.getsockname()[1]}"), name="SLOW")
        cursor, _, failures = deliver(pipeline, instance, [slow], None, time.time())
    assert failures == ["SLOW: not delivered (no end within 0 s); tried again in 60 s"]
    assert json.loads(cursor)["SLOW"]["attempts"] == 1


def test_the_body_of_a_response_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(
            Webhook(SecretStr(f"http://127.0.0.1:{server.getsockname()[1]}")).send, Message([])
        )
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n")
            sent.result()


def test_an_unreadable_landing_zone_does_not_silence_the_other_alerts(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    sensor: Sensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreadable(landing: object) -> list[str]:
        raise KycError("manifests/ cannot be listed")

    monkeypatch.setattr(conditions, "manifest_dates", unreadable)
    failed_run(job, instance)
    assert sensor.tick() == [("run_failed", f"1 run failed ({DAY})")]


def test_an_outage_is_told_whatever_the_status_of_the_run(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance, hook: Hook
) -> None:
    ids = landing.day(DAY, 30)
    with running_simulator(token="test-token", faults={id_: [HTML_502] * 9 for id_ in ids}) as simulator:
        changes = {"deepxl_base_url": simulator.url, "deepxl_max_concurrency": 1}
        pipeline = Pipeline(settings.model_copy(update=changes))
        controls = CallControls(timing=Timing(look_ups=(0.0,), back_off=0.0, breaker_waits=(0.0,)))
        job = build_defs(pipeline, controls).resolve_job_def("verify_and_publish")
        run_days(job, instance, DAY, DAY)
    sensor = Sensor(pipeline, instance, hook)
    (outage, title), *others = sensor.tick()
    assert (outage, title) == ("outage", f"calls to DeepXL kept failing: 1 run stopped ({DAY})")
    assert [kind for kind, _ in others] == ["held"]
    assert hook.bodies[0]["alerts"][0]["link"] is None
    assert sensor.tick() == []


def test_a_failed_check_of_severity_error_is_told_with_its_day(
    landing: Landing, job: dg.JobDefinition, pipeline: Pipeline, instance: dg.DagsterInstance, sensor: Sensor
) -> None:
    landing.day(DAY, 2)
    landing.day(NEXT_DAY, 1)
    assert run_days(job, instance, DAY, NEXT_DAY).success
    assert sensor.tick() == []
    rows = pipeline.lake.read(VERIFICATIONS, DAY)
    with pipeline.lake.writer(VERIFICATIONS, NEXT_DAY) as writer:
        writer.write(rows.to_pylist())
    publication = build_defs(pipeline).resolve_job_def("flatten_and_publish")
    selection = [
        spec.key
        for spec in build_defs(pipeline).resolve_all_asset_specs()
        if spec.partitions_def is None and spec.group_name == "analyze"
    ]
    done = publication.execute_in_process(instance=instance, asset_selection=selection, raise_on_error=False)
    assert not done.success
    [(kind, title)] = sensor.tick()
    assert (kind, title) == ("check_failed", "a check of severity error failed in 1 run")
    [line] = sensor.hook.bodies[0]["alerts"][0]["lines"]
    assert "completed_submissions_have_verifications" in line
    assert line.endswith("and 1 more")


def test_held_submissions_are_told_when_there_are_more(
    landing: Landing, settings: Settings, instance: dg.DagsterInstance, hook: Hook
) -> None:
    ids = landing.day(DAY, 3)
    with running_simulator(token="test-token", faults={id_: [HTML_502] for id_ in ids[:2]}) as simulator:
        pipeline = Pipeline(settings.model_copy(update={"deepxl_base_url": simulator.url, "kyc_ui_url": UI}))
        job = build_defs(pipeline, CallControls(timing=Timing(look_ups=(0.0,)))).resolve_job_def(
            "verify_and_publish"
        )
        assert not run_days(job, instance, DAY, DAY).success
        sensor = Sensor(pipeline, instance, hook)
        with pipeline.day_lease(DAY, "a run that may settle them"):
            assert sensor.tick() == []
        assert sensor.tick() == [("held", f"2 submissions held: somebody must decide ({DAY})")]
        assert sensor.tick() == []
        with pipeline.open_ledger() as ledger:
            resolve_held(ledger, ids[0], "abandon", "an engineer")
        assert sensor.tick() == []
    assert not any(id_ in json.dumps(hook.bodies) for id_ in ids)


def test_files_that_are_not_read_are_told_without_their_names(landing: Landing, sensor: Sensor) -> None:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    landing.day(today, 1)
    assert sensor.tick() == []
    (landing.root / "manifests" / today / "jane-roe.docx").write_text("x")
    (landing.root / "manifests" / "jane-roe").mkdir()
    assert sensor.tick() == [("unread", "2 files or folders of the landing zone are not read")]
    [alert] = sensor.hook.bodies[0]["alerts"]
    assert alert["lines"] == [f"{today}: 1", stray_line(1)]
    assert "jane" not in json.dumps(sensor.hook.bodies)
    assert sensor.tick() == []


def test_a_late_warehouse_is_told_once_a_day(instance: dg.DagsterInstance, sensor: Sensor) -> None:
    def at(day: int, hour: int) -> float:
        """Seconds from now to an hour of a coming day."""
        tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=day)
        return tomorrow.replace(hour=hour, minute=1).timestamp() - time.time()

    assert sensor.tick(at(1, 7)) == []  # never published
    instance.report_runless_asset_event(dg.AssetMaterialization(WAREHOUSE))
    assert sensor.tick(at(1, 6)) == []
    [(kind, title)] = sensor.tick(at(1, 7))
    assert (kind, title.split(":")[0]) == ("late", "the warehouse is late")
    assert sensor.tick(at(1, 23)) == sensor.tick(at(2, 6)) == []
    assert [kind for kind, _ in sensor.tick(at(2, 8))] == ["late"]


def test_spend_above_the_limit_is_told_once_a_day(
    landing: Landing, job: dg.JobDefinition, sensor: Sensor, instance: dg.DagsterInstance
) -> None:
    settings = sensor.pipeline.settings
    sensor.pipeline = Pipeline(
        settings.model_copy(update={"kyc_alert_calls_per_day": 2, "deepxl_price_per_call": Decimal(1)})
    )
    landing.day(DAY, 2)
    run_days(job, instance, DAY, DAY)
    assert sensor.tick() == []
    landing.day(NEXT_DAY, 1)
    run_days(job, instance, NEXT_DAY, NEXT_DAY)
    with sensor.pipeline.open_ledger() as ledger, ledger.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM attempts").scalar() == 3
    assert [kind for kind, _ in sensor.tick()] == ["spend"]
    assert sensor.tick() == []


def test_alerts_of_runs_are_told_even_if_the_ledger_cannot_be_read(
    job: dg.JobDefinition, instance: dg.DagsterInstance, sensor: Sensor, tmp_path: Path
) -> None:
    failed_run(job, instance)
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    assert sensor.tick() == [("run_failed", f"1 run failed ({DAY})")]


# --- channels and settings ----------------------------------------------------------------------------


def test_without_a_channel_nothing_is_delivered(pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
    definitions = build_defs(pipeline)
    context = dg.build_sensor_context(instance=instance, resources=definitions.resources)
    result = definitions.resolve_sensor_def("alerts").evaluate_tick(context)
    assert "set KYC_ALERT_WEBHOOK or KYC_ALERT_SMTP_URL" in (result.skip_message or "")


def test_a_cursor_that_another_version_wrote_is_read() -> None:
    reported = Reported.at_first(0.0).failed(retry_at=60.0)
    assert Reported.from_json({**reported.as_json(), "of another version": {}}) == reported


def test_the_sensor_delivers_and_moves_its_cursor(
    job: dg.JobDefinition, settings: Settings, instance: dg.DagsterInstance, hook: Hook
) -> None:
    failed_run(job, instance)
    definitions = build_defs(Pipeline(settings.model_copy(update={"kyc_alert_webhook": SecretStr(hook.url)})))
    cursor = None
    for _ in range(2):
        context = dg.build_sensor_context(instance=instance, cursor=cursor, resources=definitions.resources)
        cursor = definitions.resolve_sensor_def("alerts").evaluate_tick(context).cursor
    assert [kind for kind, _ in hook.alerts] == ["run_failed"]
    assert SECRET_PATH not in str(cursor)


@pytest.mark.parametrize(("webhook", "status"), [(None, "STOPPED"), ("https://hooks.example/x", "RUNNING")])
def test_the_sensor_is_on_by_default_if_a_channel_is_configured(
    settings: Settings, webhook: str | None, status: str
) -> None:
    changed = settings.model_copy(update={"kyc_alert_webhook": webhook and SecretStr(webhook)})
    sensor = build_defs(Pipeline(changed)).resolve_sensor_def("alerts")
    assert sensor.default_status is dg.DefaultSensorStatus[status]


def test_slack_gets_its_own_form(hook: Hook, settings: Settings) -> None:
    url = SecretStr(hook.url)
    changes = {"kyc_alert_webhook": url, "kyc_alert_webhook_form": "slack"}
    [channel] = channels(settings.model_copy(update=changes))
    channel.send(MESSAGE)
    assert hook.bodies == [
        {
            "text": "kyc-pipeline: 2 &lt;held&gt; &amp; more",
            "blocks": [
                {
                    "type": "section",
                    "text": {
                        "type": "mrkdwn",
                        "text": "*2 &lt;held&gt; &amp; more*\n• a line\n_What to do:_ `kyc-pipeline held "
                        f"list` shows them, `held resolve` decides\n<{UI}/assets/x|Open in Dagster>",
                    },
                }
            ],
        }
    ]


@dataclass
class MailServer:
    """An SMTP server and the mails that it accepted."""

    port: int = 0
    mails: list[tuple[str, list[str], EmailMessage]] = field(default_factory=list)
    users: list[LoginPassword] = field(default_factory=list)
    refused: frozenset[str] = frozenset()

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return f"550 no such person: {address}"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        mail = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append((str(envelope.mail_from), list(envelope.rcpt_tos), mail))
        return "250 OK"

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: LoginPassword
    ) -> AuthResult:
        self.users.append(data)
        return AuthResult(success=data.password == b"p@ss:word")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with a certificate for 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return file


@pytest.fixture(params=["plain", "starttls", "tls"])
def mail_server(request: pytest.FixtureRequest, certificate: Path) -> Iterator[MailServer]:
    server = MailServer()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    cases: dict[str, dict[str, Any]] = {
        "plain": {"auth_require_tls": False},
        "starttls": {"tls_context": context, "require_starttls": True, "auth_required": True},
        "tls": {"ssl_context": context, "auth_require_tls": False},
    }
    server.port = free_port()  # the controller connects to it once to see that it is up
    controller = Controller(
        server,
        hostname="127.0.0.1",
        port=server.port,
        authenticator=server.authenticate,
        **cases[request.param],
    )
    controller.start()
    try:
        yield server
    finally:
        controller.stop()


@pytest.fixture
def mail_channel(
    mail_server: MailServer,
    request: pytest.FixtureRequest,
    certificate: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> Email:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    scheme = "smtps" if "-tls" in request.node.name or "[tls" in request.node.name else "smtp"
    changes = {
        "kyc_alert_smtp_url": SecretStr(f"{scheme}://kyc:p%40ss%3Aword@127.0.0.1:{mail_server.port}"),
        "kyc_alert_email_from": "kyc@pipeline.example",
        "kyc_alert_email_to": frozenset({"a@team.example", "b@team.example"}),
    }
    [channel] = channels(settings.model_copy(update=changes))
    assert isinstance(channel, Email)
    assert "p%40ss" not in repr(channel)
    assert "team" not in repr(channel)
    return channel


def test_a_mail_is_sent_with_login(mail_server: MailServer, mail_channel: Email) -> None:
    mail_channel.send(MESSAGE)
    [(sender, recipients, mail)] = mail_server.mails
    assert (sender, recipients) == ("kyc@pipeline.example", ["a@team.example", "b@team.example"])
    assert mail["Subject"] == "kyc-pipeline: 2 <held> & more"
    assert mail["Message-ID"] == f"<{MESSAGE.id}@kyc-pipeline>"
    assert mail.get_content().replace("\r\n", "\n").rstrip() == MESSAGE.text
    assert [user.login for user in mail_server.users] == [b"kyc"]


def test_a_refused_recipient_is_no_failure_but_all_refused_are(
    mail_server: MailServer, mail_channel: Email
) -> None:
    mail_server.refused = frozenset({"a@team.example"})
    mail_channel.send(MESSAGE)
    assert [recipients for _, recipients, _ in mail_server.mails] == [["b@team.example"]]
    mail_server.refused = frozenset({"a@team.example", "b@team.example"})
    with pytest.raises(KycError, match="KYC_ALERT_SMTP_URL: not delivered") as caught:
        mail_channel.send(MESSAGE)
    assert "team" not in str(caught.value)


@pytest.mark.parametrize("mail_server", ["starttls", "tls"], indirect=True)
def test_a_server_with_an_unknown_certificate_gets_nothing(
    mail_server: MailServer, mail_channel: Email, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(KycError, match="SSLCertVerificationError"):
        mail_channel.send(MESSAGE)
    assert not mail_server.users


def test_a_mail_server_that_is_not_there_is_one_line_without_the_password() -> None:
    channel = Email(SecretStr("smtp://kyc:secretvalue@127.0.0.1:1"), "a@b.c", ["a@b.c"])
    with pytest.raises(KycError, match="KYC_ALERT_SMTP_URL: not delivered") as caught:
        channel.send(MESSAGE)
    assert "secretvalue" not in str(caught.value)


def test_the_same_alerts_have_the_same_id() -> None:
    assert MESSAGE.id == Message(list(MESSAGE.alerts)).id
    assert MESSAGE.id != Message([Alert(Kind.HELD, "another")]).id


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_is_in_the_operations_guide(kind: Kind) -> None:
    assert kind in RULES
    assert f"| `{kind}` | {RULES[kind].when} |" in OPERATIONS.read_text(encoding="utf-8")


def test_days_are_counted() -> None:
    assert days_text([]) == ""
    assert days_text([DAY]) == DAY
    assert days_text([DAY, NEXT_DAY]) == f"2 days: {DAY}, {NEXT_DAY}"
