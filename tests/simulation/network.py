"""A simulated event loop and network: aiohttp's real client runs on them.

The loop keeps asyncio's order of callbacks, which is promised; between two callbacks other threads may run.
Bytes that have arrived come before timers, as with a real selector. A connection carries bytes both ways in
order, each with its own delay. It knows with which write the last byte of a request left the client.
"""

import asyncio
import heapq
import select
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.simulation.kernel import Kernel, Thread

_HIGH_WATER = 64 * 1024


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop in one simulated thread."""

    def __init__(self) -> None:
        super().__init__()
        self._kernel = Kernel.current_kernel
        assert self._kernel.current is not None
        self.thread = self._kernel.current
        self._arrived: deque[asyncio.Handle] = deque()
        self.thread.process.loops.append(self)
        self.set_exception_handler(self._note_error)

    def _note_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._kernel.note(f"event loop: {context.get('message')} {context.get('exception')!r}")

    def time(self) -> float:
        """The monotonic clock."""
        return self._kernel.monotonic()

    def arrive(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Calls back as the selector does for a socket that is ready."""
        if not self.is_closed():
            self._arrived.append(asyncio.Handle(callback, arguments, self))
            self._kernel.wake(self.thread)

    def _write_to_self(self) -> None:
        self._kernel.wake(self.thread)

    def _run_once(self) -> None:
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)
        if not ready and not self._arrived and not self._stopping:  # type: ignore[attr-defined]
            wait = scheduled[0].when() - self.time() if scheduled else None
            self._kernel.block(None if wait is None else self._kernel.now + max(0.0, wait))
        ready += self._arrived
        self._arrived.clear()
        while scheduled and scheduled[0].when() <= self.time() + 1e-9:
            ready.append(heapq.heappop(scheduled))
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()
                self._kernel.preempt()

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Runs it in a thread of its own."""
        future = self.create_future()

        def settle(error: BaseException | None, result: Any) -> None:
            if not future.done():
                future.set_result(result) if error is None else future.set_exception(error)

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:
                self.call_soon_threadsafe(settle, error, None)
            else:
                self.call_soon_threadsafe(settle, None, result)

        Thread(target=run, name="executor").start()
        return future

    async def create_connection(self, protocol_factory: Callable[[], Any], *_: Any, **named: Any) -> Any:
        """Puts a protocol on a connected socket."""
        protocol = protocol_factory()
        transport = ClientEnd(self, protocol, named["sock"])
        protocol.connection_made(transport)
        return transport, protocol

    def close(self) -> None:
        """Closes the loop; the process has it no longer."""
        super().close()
        self.thread.process.loops.remove(self)


def run(main: Coroutine[Any, Any, Any], **_: Any) -> Any:
    """Takes the place of `asyncio.run`, which would also take SIGINT from the real process."""
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        if not loop.thread.process.is_dead:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


@dataclass
class Request:
    """A request as it leaves the client."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return int(self.headers.get("content-length", "0"))

    @property
    def is_whole(self) -> bool:
        """Whether the body is complete."""
        return len(self.body) == self.length


class Server(Protocol):
    """What stands at the other end of every connection."""

    def connects(self) -> float | None:
        """Seconds until a connection is accepted; None if it is refused."""

    def leaves(self, connection: "Connection", request: Request) -> None:
        """The last byte of the request was just written by the client."""

    def arrives(self, connection: "Connection", request: Request, *, is_first: bool) -> None:
        """More of a request arrives, perhaps its end."""


class Connection:
    """One TCP connection, seen from the server."""

    def __init__(self, server: Server, loop: SimulatedLoop) -> None:
        self.server, self.loop = server, loop
        self.process = loop.thread.process
        self.kernel = Kernel.current_kernel
        self.client: ClientEnd | None = None
        self.is_closed = self.hung_up = False
        self.upload_delay = 0.0
        """Until the server reads on what the client sends."""
        self._arrival = self._response = 0.0
        self._request: Request | None = None
        self._head = bytearray()
        self._first_chunk = True
        self.is_fresh = True
        """Whether it has carried no whole request yet."""
        self.process.at_death.append(self.close_by_client)

    def delay(self) -> float:
        """How long some bytes take."""
        return self.kernel.rng.uniform(0.001, 0.02)

    # --- client to server -----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """The client writes: the bytes arrive later, even if it crashes now."""
        request = self._parse(data)
        self._arrival = max(self._arrival, self.kernel.now + self.delay() + self.upload_delay)
        if request is not None:
            is_whole = request.is_whole
            if is_whole:
                self.is_fresh = False
                self.server.leaves(self, request)
                self._request = None
            self.kernel.at(self._arrival, self._deliver, request, self._first_chunk, is_whole, len(data))
            self._first_chunk = is_whole
        else:
            self.kernel.at(self._arrival, self._taken, len(data))

    def _parse(self, data: bytes) -> Request | None:
        if self._request is None:
            self._head += data
            head, separator, rest = self._head.partition(b"\r\n\r\n")
            if not separator:
                return None
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            fields = (line.partition(":") for line in lines)
            self._request = Request(method, target, {n.lower(): v.strip() for n, _, v in fields})
            self._head.clear()
            data = bytes(rest)
        self._request.body += data
        return self._request

    def _deliver(self, request: Request, is_first: bool, is_whole: bool, count: int) -> None:
        if not self.hung_up and (is_first or is_whole):
            self.server.arrives(self, request, is_first=is_first)
        self.kernel.at(self.kernel.now + self.upload_delay, self._taken, count)

    def _taken(self, count: int) -> None:
        if self.client is not None and not self.is_closed:
            self.loop.arrive(self.client.taken, count)

    def close_by_client(self) -> None:
        """The client closes, or its process dies. What it wrote still arrives."""
        self.client = None

    # --- server to client -----------------------------------------------------------------------------

    def send(self, data: bytes, after: float = 0.0) -> None:
        """Sends bytes to the client, after some seconds."""
        self._response = max(self._response, self.kernel.now + after + self.delay())
        self.kernel.at(self._response, self._to_client, "data_received", data)

    def interject(self, data: bytes) -> bool:
        """Sends a response whose head reaches the client before the last byte of its request has left.

        If that has left already, sends nothing and returns False.
        """
        if self._request is None or self.hung_up:
            return False
        head, separator, body = data.partition(b"\r\n\r\n")
        self._to_client("data_received", head + separator)
        self.send(body)
        return True

    def cut(self, after: float = 0.0) -> None:
        """The server hangs up: it reads nothing more."""
        self.hung_up = True
        self._response = max(self._response, self.kernel.now + after + self.delay())
        self.kernel.at(self._response, self._to_client, "connection_lost", None)

    def _to_client(self, what: str, argument: Any) -> None:
        if self.is_closed:
            return
        self.is_closed = what == "connection_lost"
        if self.client is not None:
            self.client.unread += 1
            self.loop.arrive(self.client.receive, what, argument)


class ClientEnd(asyncio.Transport):
    """The client's end of a connection, as asyncio's protocols see it."""

    def __init__(self, loop: SimulatedLoop, protocol: Any, connection: Connection) -> None:
        super().__init__()
        self._loop, self._protocol, self._connection = loop, protocol, connection
        self._unsent = 0
        self._is_paused = self._is_closing = False
        self.unread = 0
        """What has arrived and the loop has not taken yet."""
        connection.client = self

    def write(self, data: Any) -> None:
        """Hands bytes to the kernel."""
        if self._is_closing:
            return
        self._unsent += len(data)
        self._connection.write(bytes(data))
        if self._unsent > _HIGH_WATER and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def taken(self, count: int) -> None:
        """The kernel has sent bytes."""
        self._unsent -= count
        if self._is_paused and self._unsent <= _HIGH_WATER:
            self._is_paused = False
            self._protocol.resume_writing()

    def receive(self, what: str, argument: Any) -> None:
        """Something arrived."""
        self.unread -= 1
        if self._is_closing:
            return
        if what == "connection_lost":
            self._is_closing = True
            if self._is_paused:
                self._protocol.resume_writing()
        getattr(self._protocol, what)(argument)

    def close(self) -> None:
        """Closes the connection."""
        if not self._is_closing:
            self._is_closing = True
            self._connection.close_by_client()
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._is_closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The socket, for whoever asks the kernel about it."""
        return Socket(self) if name == "socket" else default

    def get_protocol(self) -> Any:
        """The protocol."""
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        """Exchanges the protocol."""
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not sent."""
        return self._unsent

    def pause_reading(self) -> None:
        """Responses are small: nothing to do."""

    def resume_reading(self) -> None:
        """Responses are small: nothing to do."""


class Socket:
    """Stands for a client's socket where it is polled; of no family, so that nobody sets its options."""

    family = None

    def __init__(self, end: ClientEnd) -> None:
        self._end = end

    def fileno(self) -> Any:
        """What the simulated `select.poll` takes."""
        return self._end


class Poll:
    """Takes the place of `select.poll`, for sockets that are read."""

    def __init__(self) -> None:
        self._ends: list[ClientEnd] = []

    def register(self, end: ClientEnd, _events: int) -> None:
        """Watches a socket."""
        self._ends.append(end)

    def poll(self, _timeout: float | None = None) -> list[tuple[ClientEnd, int]]:
        """The sockets from which something can be read now."""
        return [(end, select.POLLIN) for end in self._ends if end.unread or end.is_closing()]


async def connect(server: Server) -> Connection:
    """A new connection. Raises OSError if it is refused; may wait for ever."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    wait = server.connects()
    await asyncio.sleep(0.001 if wait is None else wait)
    if wait is None:
        raise ConnectionRefusedError(111, "Connection refused")
    return Connection(server, loop)
