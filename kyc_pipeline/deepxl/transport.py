"""Sends httpx requests directly through the aiohttp transport.

`httpx.AsyncClient` would add redirects, authentication that follows them, and logs with the URL, all unwanted
here. ADR 0009 says what going without it saves, and why aiohttp carries httpx's requests.
"""

import asyncio
import ssl
from contextlib import suppress
from functools import cache
from typing import Final, Self

import httpx
from httpx_aiohttp import AiohttpTransport

from kyc_pipeline.deepxl.multipart import CONTENT_TYPE, MultipartBody

MAX_ERROR_BYTES: Final = 64 * 1024
_MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
# Shorter than common servers' own (uvicorn: 5 s): a request on a connection that the server is just closing
# would count as "may have been processed".
_KEEPALIVE_SECONDS: Final = 3.0


class Transport:
    """Sends one request and reads the whole answer; never repeats a POST. Use it with `async with`.

    `timeout_seconds` limits first reading the documents, then the upload, then the wait for the whole answer.
    """

    def __init__(self, *, timeout_seconds: float, max_connections: int) -> None:
        self._timeout_seconds = timeout_seconds
        timeout = httpx.Timeout(timeout_seconds, connect=min(10.0, timeout_seconds / 2), pool=None)
        self._extensions = {"timeout": timeout.as_dict()}
        self._transport = AiohttpTransport(
            verify=_tls(),
            limits=httpx.Limits(max_connections=max_connections, keepalive_expiry=_KEEPALIVE_SECONDS),
        )

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.__aexit__()

    async def get(self, url: httpx.URL, headers: dict[str, str]) -> tuple[httpx.Response, bytes]:
        """The answer and its body."""
        return await self._send(httpx.Request("GET", url, headers=headers, extensions=self._extensions))

    async def post(
        self, url: httpx.URL, headers: dict[str, str], body: MultipartBody
    ) -> tuple[httpx.Response, bytes]:
        """The answer and its body. After a failure, `body` says whether the server can have all of it."""
        headers |= {"Content-Type": CONTENT_TYPE, "Content-Length": str(body.length)}
        request = httpx.Request("POST", url, headers=headers, stream=body, extensions=self._extensions)
        return await self._send(request, body)

    async def _send(
        self, request: httpx.Request, upload: MultipartBody | None = None
    ) -> tuple[httpx.Response, bytes]:
        response: httpx.Response | None = None
        try:
            async with asyncio.timeout(self._timeout_seconds) as deadline:
                if upload is not None:
                    upload.on_end = lambda: self._restart(deadline)
                    await upload.prepare()
                    self._restart(deadline)
                response = await self._transport.handle_async_request(request)
                body = await _read(response)
        finally:
            if response is not None:
                # An error while closing must not lose an answer that has been read.
                with suppress(Exception):
                    await response.aclose()
        return response, body

    def _restart(self, deadline: asyncio.Timeout) -> None:
        deadline.reschedule(asyncio.get_running_loop().time() + self._timeout_seconds)


@cache
def _tls() -> ssl.SSLContext:
    """httpx's default certificates and TLS versions. Loading takes 0.1 s, so it is done once."""
    return httpx.create_ssl_context(trust_env=False)


async def _read(response: httpx.Response) -> bytes:
    """The body up to a limit; a truncated one is not valid JSON, so the contract rejects it.

    For an error, the status is enough: if its body is lost, it counts as empty.
    """
    limit = _MAX_ANSWER_BYTES if response.is_success else MAX_ERROR_BYTES
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) >= limit:
                break
    except httpx.HTTPError:
        if response.is_success:
            raise
    return bytes(body[:limit])
