"""Faults of the simulator in which a test takes part while a call is processed."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web


@dataclass(frozen=True)
class Meanwhile:
    """Processes the call, then does something before it responds."""

    act: Callable[[], object]
    record: bool = True
    early: bool = False

    async def play(self, request: web.Request, body: bytes, stopping: asyncio.Event) -> web.StreamResponse:
        self.act()
        return web.Response(body=body, content_type="application/json")


@dataclass(frozen=True)
class WaitsForTest:
    """The simulator processes the call, but waits for the test before it responds."""

    go: threading.Event = field(default_factory=threading.Event)
    received: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released for each call that waits."""
    record: bool = True
    early: bool = False

    async def play(self, request: web.Request, body: bytes, stopping: asyncio.Event) -> web.StreamResponse:
        self.received.release()
        await asyncio.to_thread(self.go.wait)
        return web.Response(body=body, content_type="application/json")
