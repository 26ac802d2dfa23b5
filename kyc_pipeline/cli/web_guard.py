"""Protects Dagster's webserver, which executes mutations from any web page that a browser here opens.

It is an ASGI application around the webserver's own, so there is no unguarded port.

* `Host` must be one of ours: otherwise a foreign host name that resolves to this machine (DNS rebinding)
  could read everything.
* `Origin`, which browsers send with every POST and WebSocket, must be this UI's: otherwise a foreign page
  could start paid runs. Other programs send none.
* GraphQL must come by POST as JSON: a foreign page cannot send that without a CORS preflight, and a link or
  an image is a GET.
* With a password, every request needs it (HTTP basic authentication).
* No page may embed the UI in a frame (clickjacking), or load a log from it as a script or a style sheet.
"""

import base64
import re
import secrets
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d+)?")
_GRAPHQL: Final = "graphql"
_HEADERS: Final = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY_VIOLATION: Final = 1008


class WebGuard:
    """Forwards what the rules above allow, and rejects the rest."""

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], password: str | None = None) -> None:
        """`hosts` are the host names of the UI, without a port."""
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._password = None if password is None else password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        name = _HOST.fullmatch(host)
        if name is None or name[1] not in self._hosts:
            return _refuse(421, "unknown Host: use the UI's own address, or start it with --allow-host")
        if headers.get("origin", f"http://{host}").lower() not in (f"http://{host}", f"https://{host}"):
            return _refuse(403, "requests from other sites are refused")
        if not self._knows(headers.get("authorization", "")):
            refusal = _refuse(401, "password required (KYC_UI_PASSWORD); any user name works")
            refusal.headers["WWW-Authenticate"] = 'Basic realm="kyc-pipeline", charset="UTF-8"'
            return refusal
        return None if scope["type"] == "websocket" else _refused_method(scope, headers)

    def _knows(self, authorization: str) -> bool:
        if self._password is None:
            return True
        scheme, _, credentials = authorization.partition(" ")
        try:
            _, _, password = base64.b64decode(credentials, validate=True).partition(b":")
        except ValueError:  # not base64, or not ASCII
            return False
        return scheme.lower() == "basic" and secrets.compare_digest(password, self._password)


def _refused_method(scope: Scope, headers: Headers) -> PlainTextResponse | None:
    method = scope["method"]
    if method == "POST":
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return (
            None if kind == "application/json" else _refuse(415, "POST needs Content-Type: application/json")
        )
    if method not in ("GET", "HEAD"):
        return _refuse(405, f"{method} is not allowed")
    # With this `Accept`, Dagster returns the GraphiQL page, which executes nothing on its own.
    is_page = method == "GET" and "text/html" in headers.get("accept", "")
    # In any spelling, even if the webserver does not accept it.
    if scope["path"].rstrip("/").rpartition("/")[2].lower() == _GRAPHQL and not is_page:
        return _refuse(405, "GraphQL needs POST")
    return None


def _refuse(status: int, why: str) -> PlainTextResponse:
    return PlainTextResponse(f"{why}\n", status, {"Cache-Control": "no-store"})


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return send_with_headers
