"""Faults of the simulator in which a test takes part while a call is processed."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Self

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
    """The simulator processes the call, but waits for the test (or its own end) before it responds."""

    go: threading.Event = field(default_factory=threading.Event)
    received: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released for each call that waits."""
    record: bool = True
    early: bool = False

    async def play(self, request: web.Request, body: bytes, stopping: asyncio.Event) -> web.StreamResponse:
        self.received.release()
        while not (self.go.is_set() or stopping.is_set()):  # noqa: ASYNC110 (one is of another thread)
            await asyncio.sleep(0.005)
        return web.Response(body=body, content_type="application/json")


class PatienceOfTests:
    """Replaces the client's `Patience`: time is up when a test says so, not when a busy machine is late."""

    seconds: ClassVar[list[float]] = []
    """What the client asked for, one number for each request."""
    restarts: ClassVar[int] = 0
    _waiting: ClassVar[list["PatienceOfTests"]] = []

    def __init__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._waiting.append(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._waiting.remove(self)
        await self._timeout.__aexit__(kind, error, traceback)

    def restart(self) -> None:
        """Counts only: no time runs."""
        type(self).restarts += 1

    @classmethod
    def time_is_up(cls) -> None:
        """Ends the wait of every request, from any thread."""
        for each in cls._waiting:
            each._loop.call_soon_threadsafe(each._timeout.reschedule, 0.0)


@dataclass(frozen=True)
class NoResponseInTime:
    """Does not respond; the client's time is up as soon as the request has arrived."""

    record: bool = False
    early: bool = False

    async def play(self, request: web.Request, body: bytes, stopping: asyncio.Event) -> web.StreamResponse:
        PatienceOfTests.time_is_up()
        await stopping.wait()
        return web.Response()
