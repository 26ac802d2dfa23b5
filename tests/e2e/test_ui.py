"""`kyc-pipeline ui`, which `make dev` calls: it works, and other pages in the same browser cannot use it."""

import base64
import http.client
import http.server
import json
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import sync_playwright

from tests.e2e import browser
from tests.e2e.servers import (
    CODE_LOCATION,
    REPOSITORY,
    Webserver,
    clean_environment,
    free_port,
    running,
    script,
    webserver,
)

pytestmark = pytest.mark.e2e
START = (
    'mutation { startSensor(sensorSelector: {repositoryName: "__repository__", '
    'repositoryLocationName: "kyc_pipeline", sensorName: "new_manifests"}) { __typename } }'
)
BODY = json.dumps({"query": START})
JSON = {"Content-Type": "application/json"}
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "graphql-ws",
}
PASSWORD = "correct horse battery"


def lower(headers: Mapping[str, str]) -> dict[str, str]:
    """The same headers, so that a dict can hold each twice."""
    return {name.lower(): value for name, value in headers.items()}


def test_dg_loads_the_same_code_location(tmp_path: Path) -> None:
    """`dg` reads pyproject.toml, `dagster` workspace.yaml and `kyc-pipeline ui` its own: with one name."""
    env = clean_environment(tmp_path, DAGSTER_HOME=str(tmp_path))
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
    assert "virtual environment" not in checked.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webserver]:
    folder = tmp_path_factory.mktemp("ui")
    home = folder / "dagster_home"
    home.mkdir()
    shutil.copy(REPOSITORY / "dagster_home" / "dagster.yaml", home)
    env = clean_environment(folder, DAGSTER_HOME=str(home))
    port = free_port()
    command = [script("kyc-pipeline"), "ui", "--port", str(port)]
    log = folder / "ui.log"
    with webserver(command, cwd=folder, env=env, log=log, port=port, stop=signal.SIGTERM) as running_server:
        yield running_server
        # A daemon that is interrupted while it starts prints a traceback of its own.
        running_server.wait(lambda: "the following daemons" in log.read_text(encoding="utf-8"), "the daemon")
    assert "Traceback" not in log.read_text(encoding="utf-8")


def request(
    server: Webserver, method: str, path: str, body: str | None = None, headers: Mapping[str, str] = {}
) -> int:
    """The status of the response to a request with these headers and, unless given, the right Host."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(None if body is None else body.encode())
        return connection.getresponse().status
    finally:
        connection.close()


def sensor_runs(server: Webserver) -> bool:
    """Whether the sensor `new_manifests` is on."""
    query = (
        "query ($s: SensorSelector!) { sensorOrError(sensorSelector: $s) "
        "{ ... on Sensor { sensorState { status } } } }"
    )
    selector = {**CODE_LOCATION, "sensorName": "new_manifests"}
    return bool(server.ask(query, s=selector)["sensorOrError"]["sensorState"]["status"] == "RUNNING")


def test_it_serves_our_schedules_and_sensors(server: Webserver) -> None:
    data = server.ask(
        "query ($r: RepositorySelector!) { repositoryOrError(repositorySelector: $r) "
        "{ ... on Repository { sensors { name } schedules { name } } } }",
        r=CODE_LOCATION,
    )["repositoryOrError"]
    assert "new_manifests" in [sensor["name"] for sensor in data["sensors"]]
    assert {schedule["name"] for schedule in data["schedules"]} >= {"daily_verification", "catch_up"}


def test_the_daemon_runs(server: Webserver) -> None:
    def is_healthy() -> bool:
        statuses = server.ask("{ instance { daemonHealth { allDaemonStatuses { daemonType healthy } } } }")
        return {
            status["daemonType"]: status["healthy"]
            for status in statuses["instance"]["daemonHealth"]["allDaemonStatuses"]
        }["SENSOR"] is True

    server.wait(is_healthy, "the daemon")


@pytest.mark.parametrize(
    ("attack", "method", "path", "body", "headers", "status"),
    [
        ("a link", "GET", "/graphql?query=" + quote(START), None, {}, 405),
        ("a link with a slash", "GET", "/graphql/?query=" + quote(START), None, {}, 405),
        ("an escaped link", "GET", "/%67raphql?query=" + quote(START), None, {}, 405),
        (
            "two Accepts",
            "GET",
            "/graphql?query=" + quote(START),
            None,
            {"Accept": "*/*", "accept": "text/html"},
            405,
        ),
        ("a form", "POST", "/graphql?query=" + quote(START), "", {"Origin": "https://evil.example"}, 403),
        (
            "a form without Origin",
            "POST",
            "/graphql?query=" + quote(START),
            "a=b",
            {"Content-Type": "application/x-www-form-urlencoded"},
            415,
        ),
        ("text", "POST", "/graphql", BODY, {"Content-Type": "text/plain; application/json"}, 415),
        ("text from a page", "POST", "/graphql", BODY, {"Content-Type": "text/plain", "Origin": "null"}, 403),
        ("a page of another port", "POST", "/graphql", BODY, {**JSON, "Origin": "http://127.0.0.1:1"}, 403),
        ("GraphQL as text", "POST", "/graphql", START, {"Content-Type": "application/graphql"}, 415),
        ("a preflight", "OPTIONS", "/graphql", None, {"Origin": "https://evil.example"}, 403),
        ("another method", "PUT", "/graphql", BODY, JSON, 405),
        ("a rebound name", "POST", "/graphql", BODY, {**JSON, "Host": "evil.example"}, 421),
        (
            "a rebound name that agrees",
            "POST",
            "/graphql",
            BODY,
            {**JSON, "Host": "evil.example:3000", "Origin": "http://evil.example:3000"},
            421,
        ),
        ("a name that only begins well", "GET", "/", None, {"Host": "127.0.0.1.evil.example"}, 421),
        ("no name", "GET", "/", None, {"Host": ""}, 421),
        ("a report of an asset", "POST", "/report_asset_materialization/warehouse", "", {}, 415),
        ("a doubled slash", "GET", "//graphql?query=" + quote(START), None, {}, 405),
        ("capitals", "GET", "/GraphQL?query=" + quote(START), None, {}, 405),
        ("an escaped slash", "GET", "/graphql%2F?query=" + quote(START), None, {}, 405),
        ("a HEAD", "HEAD", "/graphql?query=" + quote(START), None, {}, 405),
        ("an address in the path", "GET", "http://evil.example/graphql?query=" + quote(START), None, {}, 421),
        ("an overridden method", "PUT", "/graphql", BODY, {**JSON, "X-HTTP-Method-Override": "POST"}, 405),
        (
            "an overridden link",
            "GET",
            "/graphql?_method=POST&query=" + quote(START),
            None,
            {"X-HTTP-Method-Override": "POST", "X-Method-Override": "POST"},
            405,
        ),
        (
            "a form with a file",
            "POST",
            "/graphql?query=" + quote(START),
            "--b--",
            {"Content-Type": "multipart/form-data; boundary=b"},
            415,
        ),
        ("nearly JSON", "POST", "/graphql", BODY, {"Content-Type": "application/jsonp"}, 415),
        ("two types", "POST", "/graphql", BODY, {"Content-Type": "text/plain", **lower(JSON)}, 415),
        ("a list of types", "POST", "/graphql", BODY, {"Content-Type": "application/json, text/plain"}, 415),
        ("no type", "POST", "/graphql", BODY, {}, 415),
        ("a trace", "TRACE", "/graphql", None, {}, 405),
        ("two names", "POST", "/graphql", BODY, {**JSON, "Host": "127.0.0.1, evil.example"}, 421),
        ("a name with a user", "POST", "/graphql", BODY, {**JSON, "Host": "127.0.0.1:80@evil.example"}, 421),
        ("another scheme", "POST", "/graphql", BODY, {**JSON, "Origin": "ftp://127.0.0.1"}, 403),
        (
            "an origin that begins well",
            "POST",
            "/graphql",
            BODY,
            {**JSON, "Origin": "http://127.0.0.1.x"},
            403,
        ),
        ("a WebSocket", "GET", "/graphql", None, {**UPGRADE, "Origin": "https://evil.example"}, 403),
        ("a WebSocket of null", "GET", "/graphql", None, {**UPGRADE, "Origin": "null"}, 403),
        ("a rebound WebSocket", "GET", "/graphql", None, {**UPGRADE, "Host": "evil.example"}, 403),
    ],
)
def test_an_attack_is_refused(
    server: Webserver,
    attack: str,
    method: str,
    path: str,
    body: str | None,
    headers: dict[str, str],
    status: int,
) -> None:
    assert request(server, method, path, body, headers) == status, attack
    assert not sensor_runs(server)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_request_without_a_host_is_refused(server: Webserver, version: str) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        head = (
            f"POST /graphql HTTP/{version}\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}"
        )
        connection.sendall(f"{head}\r\nConnection: close\r\n\r\n{BODY}".encode())
        assert connection.makefile("rb").readline().split()[1] in (b"400", b"421")
    assert not sensor_runs(server)


def test_other_sites_cannot_embed_a_response(server: Webserver) -> None:
    with urllib.request.urlopen(f"{server.url}/server_info", timeout=60) as response:
        assert response.headers["X-Frame-Options"] == "DENY"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_the_same_requests_of_the_ui_itself_are_answered(server: Webserver) -> None:
    origin = {"Origin": server.url}
    query = json.dumps({"query": "{ version }"})
    assert request(server, "POST", "/graphql", query, {**JSON, **origin}) == 200
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert request(server, "POST", "/graphql", query, charset) == 200
    assert request(server, "GET", "/graphql", None, {**UPGRADE, **origin}) == 101
    assert request(server, "GET", "/graphql", None, {"Accept": "text/html"}) == 200
    host = f"localhost:{urlsplit(server.url).port}"
    assert request(server, "GET", "/overview", None, {"Host": host}) == 200


EVIL = """<!doctype html><img src="{url}/graphql?query={link}">
<iframe name="sink" src="{url}/overview"></iframe>
<form id="form" method="post" target="sink" enctype="text/plain" action="{url}/graphql?query={link}"></form>
<script>
const tries = [
  fetch("{url}/graphql", {{method: "POST", mode: "no-cors", credentials: "include", body: {body}}}),
  fetch("{url}/graphql", {{method: "POST", headers: {{"Content-Type": "application/json"}}, body: {body}}}),
  new Promise(done => {{
    const socket = new WebSocket("{url}/graphql".replace("http", "ws"), "graphql-ws");
    socket.onopen = () => {{
      socket.send(JSON.stringify({{type: "start", id: "1", payload: {{query: {query}}}}}));
      window.opened = true;
    }};
    socket.onclose = socket.onerror = done;
  }}),
];
form.submit();
Promise.allSettled(tries).then(() => window.tried = true);
</script>"""

OWN = """async body => [
  (await fetch("/graphql", {method: "POST", headers: {"Content-Type": "application/json"}, body})).status,
  await new Promise(done => {
    const socket = new WebSocket(location.origin.replace("http", "ws") + "/graphql", "graphql-ws");
    socket.onopen = () => done("open");
    socket.onerror = () => done("refused");
  }),
]"""


def test_a_page_in_the_same_browser_cannot_use_it_and_the_ui_can(server: Webserver) -> None:
    port = urlsplit(server.url).port
    rebound = f"http://rebound.test:{port}"
    pages = {
        "/": EVIL.format(url=server.url, link=quote(START), body=json.dumps(BODY), query=json.dumps(START))
    }
    executable = browser.find()
    if executable is None:
        pytest.skip(browser.NO_BROWSER)
    rules = "--host-resolver-rules=MAP rebound.test 127.0.0.1"
    with sync_playwright() as playwright, website(pages) as evil:
        chromium = playwright.chromium.launch(executable_path=executable, args=[*browser.FLAGS, rules])
        page = chromium.new_page()
        page.goto(evil)
        page.wait_for_function("window.tried")
        assert not page.evaluate("window.opened")
        response = page.goto(f"{rebound}/overview")
        assert response is not None
        assert response.status == 421
        assert not sensor_runs(server)
        # The UI's own page can do what the attacks could not. `test_demo.py` clicks through the UI.
        page.goto(f"{server.url}/server_info")
        assert page.evaluate(OWN, BODY) == [200, "open"]
        assert sensor_runs(server)
        chromium.close()


@contextmanager
def website(pages: Mapping[str, str]) -> Iterator[str]:
    """Serves HTML pages on loopback; yields the base URL."""
    handler = type("Pages", (_Page,), {"pages": pages})
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{site.server_port}"
    finally:
        site.shutdown()
        thread.join()
        site.server_close()


class _Page(http.server.BaseHTTPRequestHandler):
    pages: Mapping[str, str] = {}

    def do_GET(self) -> None:
        text = self.pages.get(self.path, "").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


def test_viewers_need_the_password_and_change_nothing(tmp_path: Path) -> None:
    env = clean_environment(tmp_path, DAGSTER_HOME=str(tmp_path), KYC_UI_PASSWORD=PASSWORD)
    port = free_port()
    command = [script("kyc-pipeline"), "ui", "--port", str(port), "--read-only", "--no-daemon"]
    viewer = Webserver(f"http://127.0.0.1:{port}", tmp_path / "ui.log")

    def login(password: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(f"ann:{password}".encode()).decode()}

    def status(headers: Mapping[str, str]) -> int | None:
        try:
            return request(viewer, "GET", "/server_info", None, headers)
        except OSError:
            return None

    with running(command, cwd=tmp_path, env=env, log=viewer.log):
        assert viewer.wait(lambda: status({}), "the webserver") == 401
        assert status(login(PASSWORD)) == 200
        assert status(login("wrong")) == status(login("")) == 401
        for wrong in ("Basic ?", "Basic é", "Bearer x"):
            assert status({"Authorization": wrong}) == 401
        assert request(viewer, "GET", "/graphql", None, UPGRADE) == 403
        assert request(viewer, "GET", "/graphql", None, UPGRADE | login(PASSWORD)) == 101
        sent = urllib.request.Request(f"{viewer.url}/graphql", BODY.encode(), {**JSON, **login(PASSWORD)})
        with urllib.request.urlopen(sent, timeout=60) as response:
            assert json.load(response)["data"]["startSensor"]["__typename"] == "UnauthorizedError"


def test_it_listens_beyond_loopback_only_with_a_password(tmp_path: Path) -> None:
    env = clean_environment(tmp_path, DAGSTER_HOME=str(tmp_path))
    command = [script("kyc-pipeline"), "ui", "--host", "0.0.0.0"]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "KYC_UI_PASSWORD" in ended.stderr
