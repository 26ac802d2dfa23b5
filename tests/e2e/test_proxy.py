"""`deploy/nginx.conf`: a real nginx in front of the UI's guard, where nginx is installed."""

import base64
import http.client
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from kyc_pipeline.cli.web_guard import LOOPBACK, WebGuard
from tests.e2e.servers import free_port, poll, running
from tests.e2e.sign_on import SIGNED_IN, running_sign_on
from tests.optional import absent

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.e2e
CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"
NAME = "kyc.example.com"
PASSWORD = "correct horse battery"
JSON = {"Content-Type": "application/json"}


async def answer(request: Request) -> JSONResponse:
    """What the UI would do, with what it would know."""
    return JSONResponse({"method": request.method, "cookie": request.headers.get("Cookie", "")})


async def accept(socket: WebSocket) -> None:
    """Accepts the connection."""
    await socket.accept()
    await socket.close()


@contextmanager
def guarded_ui() -> Iterator[int]:
    """The guard of `kyc-pipeline ui --allow-host`, around a small application; yields its port."""
    app = Starlette(
        routes=[Route("/graphql", answer, methods=["GET", "POST"]), WebSocketRoute("/graphql", accept)]
    )
    port = free_port()
    guard = WebGuard(app, hosts={*LOOPBACK, NAME}, password=PASSWORD)
    server = uvicorn.Server(uvicorn.Config(guard, "127.0.0.1", port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        poll(lambda: server.started, "the guard")
        yield port
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real nginx with the shipped file, other ports and paths; yields its port."""
    if NGINX is None:
        absent("nginx")
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    make = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={NAME}"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    login = base64.b64encode(f"nginx:{PASSWORD}".encode()).decode()
    (folder / "kyc-ui-password.conf").write_text(f'proxy_set_header Authorization "Basic {login}";\n')
    port = free_port()
    with guarded_ui() as ui_port, running_sign_on() as sign_on_port:
        text = CONFIGURATION.read_text(encoding="utf-8")
        for old, new in (
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("/etc/ssl/kyc.example.com.pem", str(certificate)),
            ("/etc/ssl/private/kyc.example.com.key", str(key)),
            ("127.0.0.1:3000", f"127.0.0.1:{ui_port}"),
            ("127.0.0.1:4180", f"127.0.0.1:{sign_on_port}"),
        ):
            assert old in text
            text = text.replace(old, new)
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "kyc.conf").write_text(text)
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log stderr; events {{}}"
            f"http {{ access_log off; {temporary} include kyc.conf; }}"
        )
        command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
        log = folder / "nginx.log"
        with running(command, cwd=folder, env={}, log=log):
            poll(lambda: status(port, "GET", "/oauth2/x") == 200, "nginx", log=log)
            yield port


def call(
    port: int, method: str, path: str, headers: dict[str, str], body: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the response to a request with the public name."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
    try:
        connection.request(method, path, body, {"Host": NAME, **headers})
        response = connection.getresponse()
        return (
            response.status,
            dict(response.getheaders()),
            b"" if response.status == 101 else response.read(),
        )
    finally:
        connection.close()


def status(port: int, method: str, path: str, **headers: str) -> int | None:
    """The status; None while nothing listens."""
    try:
        return call(port, method, path, headers)[0]
    except OSError:
        return None


def test_strangers_must_sign_in(proxy: int) -> None:
    code, headers, _ = call(proxy, "GET", "/runs?a=b", {})
    assert (code, headers["Location"]) == (302, f"/oauth2/sign_in?rd=https://{NAME}/runs?a=b")
    assert call(proxy, "POST", "/graphql", JSON, "{}")[0] == 302
    assert call(proxy, "GET", "/oauth2/auth", SIGNED_IN)[0] == 404


def test_who_is_signed_in_uses_the_ui(proxy: int) -> None:
    own = {**SIGNED_IN, **JSON, "Origin": f"https://{NAME}"}
    code, headers, body = call(proxy, "POST", "/graphql", own, "{}")
    assert (code, json.loads(body)) == (200, {"method": "POST", "cookie": ""})
    assert headers["Strict-Transport-Security"]
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert call(proxy, "GET", "/graphql", {**own, **upgrade})[0] == 101
    assert call(proxy, "GET", "/graphql", {**own, **upgrade, "Origin": "https://evil.example"})[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("GET", "/graphql?query=x", {}, 405),
        ("GET", "/%67raphql?query=x", {}, 405),
        ("POST", "/graphql", {"Content-Type": "text/plain"}, 415),
        ("POST", "/graphql", {**JSON, "Origin": "https://evil.example"}, 403),
        ("POST", "/graphql", {**JSON, "Host": "evil.example"}, 421),
    ],
)
def test_the_guard_stands_behind_nginx(
    proxy: int, method: str, path: str, headers: dict[str, str], expected: int
) -> None:
    """Another page in the browser of somebody who is signed in cannot use the UI."""
    assert (
        call(proxy, method, path, {**SIGNED_IN, **headers}, None if method == "GET" else "{}")[0] == expected
    )
