"""Faults that tests inject into the simulator. Not for the demo.

`Simulator(faults={"s-1": [Responds(503), Resets(record=True)]})` injects faults into the first two POSTs of
submission `s-1`, in this order; `lookup=` into every look-up. With `record` the verification is processed
first: the record exists and would be billed.
"""

import asyncio
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from aiohttp import web


class Fault(Protocol):
    """A fault of one response. `record`: process the request first. `early`: do not read the documents."""

    @property
    def record(self) -> bool: ...

    @property
    def early(self) -> bool: ...

    async def play(
        self, request: web.Request, body: bytes, stopping: asyncio.Event
    ) -> web.StreamResponse: ...


@dataclass(frozen=True, slots=True)
class Responds:
    """Respond with this status, these headers and this body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    record: bool = False
    early: bool = False

    async def play(self, request: web.Request, body: bytes, stopping: asyncio.Event) -> web.StreamResponse:
        return web.Response(status=self.status, headers=dict(self.headers), body=self.body)


@dataclass(frozen=True, slots=True)
class Hangs:
    """Never respond."""

    record: bool = False
    early: bool = False

    async def play(self, request: web.Request, body: bytes, stopping: asyncio.Event) -> web.StreamResponse:
        await stopping.wait()
        return _reset(request)


@dataclass(frozen=True, slots=True)
class Resets:
    """Reset the connection (TCP RST) instead of responding."""

    record: bool = False
    early: bool = False

    async def play(self, request: web.Request, body: bytes, stopping: asyncio.Event) -> web.StreamResponse:
        return _reset(request)


@dataclass(frozen=True, slots=True)
class HalfBody:
    """Announce the whole response, send half of it, then close the connection."""

    record: bool = True
    early: bool = False

    async def play(self, request: web.Request, body: bytes, stopping: asyncio.Event) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        if request.transport is not None:
            request.transport.close()
        return response


HTML_200: Final = Responds(200, {"Content-Type": "text/html"}, b"<!doctype html><p>Welcome", record=True)
"""A gateway's page in place of the response, although the verification was processed."""

EMPTY_OBJECT_200: Final = Responds(200, {"Content-Type": "application/json"}, b"{}", record=True)
"""JSON without a result."""

HTML_502: Final = Responds(502, {"Content-Type": "text/html"}, b"<html><h1>502 Bad Gateway</h1></html>")
"""A gateway's error page."""


def redirects(location: str, status: int = 307) -> Responds:
    """A redirect, for example to another host."""
    return Responds(status, {"Location": location})


def _reset(request: web.Request) -> web.StreamResponse:
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()
