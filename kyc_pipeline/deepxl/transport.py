"""Sends httpx requests directly through the aiohttp transport.

`httpx.AsyncClient` would add redirects, authentication that follows them, and logs with the URL, all unwanted
here. ADR 0009 says why aiohttp carries httpx's requests.
"""

import asyncio
import base64
import select
import ssl
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple, Self
from weakref import WeakSet

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr

from kyc_pipeline.deepxl.compression import TooLarge, Unusable, unpack
from kyc_pipeline.deepxl.multipart import CONTENT_TYPE, MultipartBody
from kyc_pipeline.deepxl.patience import Patience
from kyc_pipeline.errors import UsageError

MAX_ERROR_BYTES: Final = 64 * 1024
_MAX_BYTES: Final = {"POST": 4 * 1024 * 1024, "GET": 16 * 1024 * 1024}
"""Limits of a response (POST) and a history page (GET): as received, and after each decompression."""
QUICK_BYTES: Final = 64 * 1024
"""A larger body is decompressed and parsed in a thread."""
_MAX_HEADER_BYTES: Final = 128 * 1024
_MAX_HEADERS: Final = 1000
# Shorter than common servers' own (uvicorn: 5 s): a request on a connection that the server is just closing
# would count as "may have been processed".
_KEEPALIVE_SECONDS: Final = 3.0


class Reply(NamedTuple):
    """A response and its body. `is_early`: it began before the last byte of the request's body had left.

    `problem` says why a 2xx response has no usable body; it completes "the response is".
    """

    response: httpx.Response
    body: bytes
    is_early: bool
    problem: str = ""


class Transport:
    """Sends one request and reads the whole response; never repeats a POST. Use it with `async with`.

    `timeout_seconds` limits each step: reading the documents, the upload, the wait for the whole
    response. A kept connection is not reused if anything has arrived since its last response: it would count
    as the next request's response.

    `proxy` is an http(s) URL, perhaps with user and password; an https request goes through it by CONNECT.
    `ca_file` has the only certificate authorities to trust. The environment never sets either.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float,
        max_connections: int,
        proxy: SecretStr | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._proxy = None if proxy is None else _proxy(proxy)
        self._tls = _tls(ca_file)
        self._timeout_seconds = timeout_seconds
        self._max_connections = max_connections
        # `Patience` limits the rest.
        timeout = httpx.Timeout(None, connect=min(10.0, timeout_seconds / 2))
        self._extensions = {"timeout": timeout.as_dict()}
        self._kept = self._pool()
        self._fresh = self._pool(keeps=False)
        self._pools = [self._kept, self._fresh]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for pool in self._pools:
            await pool.aclose()

    def distrust(self) -> None:
        """Never reuses the present connections: one of them delivered another request's response."""
        self._kept = self._pool()
        self._pools.append(self._kept)

    async def get(
        self, url: httpx.URL, headers: dict[str, str], *, fresh: bool = False
    ) -> tuple[httpx.Response, bytes]:
        """The response and its body; `fresh` as in `post`."""
        request = httpx.Request("GET", url, headers=headers, extensions=self._extensions)
        reply = await self._send(self._fresh if fresh else self._kept, request)
        return reply.response, reply.body

    async def post(
        self, url: httpx.URL, headers: dict[str, str], body: MultipartBody, *, fresh: bool = False
    ) -> Reply:
        """The response to an upload; `fresh`: on a new connection, where no earlier response can arrive.

        After a failure, `body` says whether the server can have all of it.
        """
        headers |= {"Content-Type": CONTENT_TYPE, "Content-Length": str(body.length)}
        request = httpx.Request("POST", url, headers=headers, stream=body, extensions=self._extensions)
        try:
            return await self._send(self._fresh if fresh else self._kept, request, body)
        except httpx.HTTPError as error:
            if not isinstance(error.__cause__, _StaleConnection):
                raise
        return await self._send(self._fresh, request, body)  # nothing was sent

    async def _send(
        self, pool: AiohttpTransport, request: httpx.Request, upload: MultipartBody | None = None
    ) -> Reply:
        response: httpx.Response | None = None
        body, problem = b"", ""
        try:
            async with Patience(self._timeout_seconds) as patience:
                if upload is not None:
                    upload.on_end = patience.restart
                    await upload.prepare()
                    patience.restart()
                response = await pool.handle_async_request(request)
                is_early = upload is not None and not upload.handed_over
                try:
                    body = await _read(response)
                except Unusable as error:
                    problem = str(error)
        finally:
            if response is not None:
                # An error while closing must not lose a response that has been read.
                with suppress(Exception):
                    await response.aclose()
        return Reply(response, body, is_early, problem)

    def _pool(self, *, keeps: bool = True) -> AiohttpTransport:
        """A pool of connections. Without `keeps`, each connection is for one request."""

        def session() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._max_connections,
                    ssl=self._tls,
                    **({"keepalive_timeout": _KEEPALIVE_SECONDS} if keeps else {"force_close": True}),
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                request_class=_Request,
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
                max_headers=_MAX_HEADERS,
            )

        return AiohttpTransport(verify=self._tls, client=session, proxy=self._proxy)


_used: "WeakSet[ResponseHandler]" = WeakSet()
"""Connections that have carried a request."""


class _StaleConnection(aiohttp.ServerDisconnectedError):
    """A kept connection on which something has arrived since its last response."""


class _Request(aiohttp.ClientRequest):
    """Checks a kept connection before it sends anything. aiohttp closes a stale one, and repeats a GET."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Sends the request. Raises :class:`_StaleConnection`."""
        protocol, transport = conn.protocol, conn.transport
        assert protocol is not None
        assert transport is not None
        if protocol in _used:
            socket = transport.get_extra_info("socket")
            poll = select.poll()
            poll.register(socket.fileno(), select.POLLIN)
            if protocol.should_close or poll.poll(0):
                raise _StaleConnection
        _used.add(protocol)
        return await super().send(conn)


@cache
def _tls(ca_file: Path | None) -> ssl.SSLContext:
    """httpx's default certificates, or those of a file. Loading takes 0.1 s, so it is done once."""
    if ca_file is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        why = error.strerror if type(error) in (FileNotFoundError, PermissionError) else "it has none"
        raise UsageError(
            f"DEEPXL_CA_FILE: no certificate can be read from {ca_file} ({why}): it must be a PEM file"
        ) from None


def _proxy(url: SecretStr) -> httpx.Proxy:
    found = httpx.URL(url.get_secret_value())
    headers = {}
    if found.userinfo:
        credentials = base64.b64encode(f"{found.username}:{found.password}".encode()).decode()
        headers["Proxy-Authorization"] = f"Basic {credentials}"
    return httpx.Proxy(found.copy_with(userinfo=b""), headers=headers)


async def _read(response: httpx.Response) -> bytes:
    """The unpacked body. Raises :class:`Unusable` if it is cut off, damaged or too large.

    For an error, the status is enough: a longer body is truncated, and a lost one counts as empty.
    """
    limit = _MAX_BYTES[response.request.method] if response.is_success else MAX_ERROR_BYTES
    received = bytearray()
    try:
        async for chunk in response.aiter_raw():
            received += chunk
            if len(received) > limit and response.is_success:
                raise TooLarge(limit)
            if len(received) > limit:
                break
        return await _unpack(bytes(received[:limit]), response.headers.get("Content-Encoding", ""), limit)
    except (httpx.HTTPError, Unusable):
        if response.is_success:
            raise
        return b""


async def _unpack(body: bytes, encoding: str, limit: int) -> bytes:
    try:
        return unpack(body, encoding, min(QUICK_BYTES, limit))
    except TooLarge:
        return await asyncio.to_thread(unpack, body, encoding, limit)
