"""A simulated computer: threads, processes and clocks, all driven by one seed.

Production code runs here unchanged. A thread is a greenlet, so only one runs at a time. Where it blocks, and
between two callbacks of its event loop, the seed decides who is next, and a process can crash or freeze.
Time passes only while nobody can run.
"""

import asyncio
import contextlib
import heapq
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, tzinfo
from typing import Any, ClassVar

from greenlet import getcurrent, greenlet

START = datetime(2024, 9, 2, tzinfo=UTC).timestamp()
"""The wall clock at the start of a simulation."""
_MAX_STEPS = 400_000


class Crashed(
    BaseException
):  # nothing in production catches it for good: a dead process gets no further step
    """The process of this thread was killed."""


class Stuck(Exception):
    """Threads wait that nothing will wake, or they never come to an end."""


class Process:
    """A process; `machine` is what its leases show of the machine and the pid namespace."""

    def __init__(self, name: str, machine: str, pid: int) -> None:
        self.name, self.machine, self.pid = name, machine, pid
        self.is_dead = False
        self.frozen_until = 0.0
        self.steps = 0
        self.threads: list[Thread] = []
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.at_death: list[Callable[[], None]] = []
        self.at_step: dict[int, Callable[[], None]] = {}
        """What happens to the process before its n-th step."""

    def is_running(self) -> bool:
        """Whether it has neither ended nor died."""
        return not self.is_dead and any(thread.is_alive() for thread in self.threads)


class Kernel:
    """Runs the threads of all processes of one simulation."""

    current_kernel: ClassVar["Kernel"]

    def __init__(self, rng: random.Random) -> None:
        Kernel.current_kernel = self
        self.rng = rng
        self.now = 0.0
        self.clock_step = 0.0
        """How far the wall clock was stepped."""
        self.asleep = 0.0
        """Seconds for which the machine slept: the monotonic clock left them out."""
        self.current: Thread | None = None
        self.processes: list[Process] = []
        self.log: list[str] = []
        self.hub = getcurrent()
        self._runnable: list[Thread] = []
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def note(self, what: str) -> None:
        """Adds a line to the log of this simulation, which a failure prints."""
        who = self.current.process.name if self.current is not None else "world"
        self.log.append(f"{self.now:9.3f} {who:<10} {what}")

    # --- what the world does --------------------------------------------------------------------------

    def at(self, moment: float, callback: Callable[..., None], *arguments: Any) -> None:
        """Calls back at a moment of true time."""
        heapq.heappush(self._events, (max(moment, self.now), next(self._numbers), callback, arguments))

    def spawn(self, name: str, machine: str, target: Callable[[], None]) -> Process:
        """Starts a process."""
        process = Process(name, machine, pid=1000 + len(self.processes))
        self.processes.append(process)
        Thread(target=target, name="main", process=process).start()
        return process

    def run(self, is_done: Callable[[], bool], until: float) -> None:
        """Lets everybody run; raises :class:`Stuck` at the moment `until`."""
        for _ in range(_MAX_STEPS):
            while self._events and self._events[0][0] <= self.now:
                _, _, callback, arguments = heapq.heappop(self._events)
                callback(*arguments)
            if is_done():
                return
            awake = [thread for thread in self._runnable if thread.process.frozen_until <= self.now]
            if awake:
                self._step(awake[self.rng.randrange(len(awake))] if len(awake) > 1 else awake[0])
            elif not self._events or self._events[0][0] > until:
                raise Stuck(f"at {self.now:.0f} s: {self._waiting()}")
            else:
                self.now = self._events[0][0]
        raise Stuck(f"no end after {_MAX_STEPS} steps, at {self.now:.0f} s: {self._waiting()}")

    def _waiting(self) -> str:
        left = [f"{p.name}/{t.name}" for p in self.processes for t in p.threads if t.is_alive()]
        return f"still running: {', '.join(left) or 'nobody'}"

    def _step(self, thread: "Thread") -> None:
        process = thread.process
        process.steps += 1
        happening = process.at_step.pop(process.steps, None)
        if happening is not None:
            happening()
            if process.is_dead or process.frozen_until > self.now:
                return
        self._runnable.remove(thread)
        thread.is_runnable = False
        self._switch_to(thread)

    def _switch_to(self, thread: "Thread", *error: type[BaseException]) -> None:
        """Continues the thread. asyncio keeps its running loop by real thread, so it is exchanged here."""
        outer = self.current, asyncio._get_running_loop(), sys.get_asyncgen_hooks()
        self.current = thread
        asyncio._set_running_loop(thread.loop)
        sys.set_asyncgen_hooks(*thread.hooks)
        (thread.greenlet.throw if error else thread.greenlet.switch)(*error)
        thread.loop, thread.hooks = asyncio._get_running_loop(), sys.get_asyncgen_hooks()
        self.current = outer[0]
        asyncio._set_running_loop(outer[1])
        sys.set_asyncgen_hooks(*outer[2])

    def freeze(self, process: Process, seconds: float) -> None:
        """SIGSTOP, then SIGCONT after some seconds."""
        self.note(f"{process.name} freezes for {seconds:.0f} s")
        process.frozen_until = self.now + seconds
        self.at(process.frozen_until, lambda: None)

    def sleep_machine(self, seconds: float) -> None:
        """The lid of the laptop is closed: every process stops, and the monotonic clock too."""
        self.asleep += seconds
        for process in self.processes:
            if not process.is_dead:
                self.freeze(process, seconds)

    def kill(self, process: Process) -> None:
        """kill -9: no thread of the process does anything that another process can see."""
        if process.is_dead:
            return
        process.is_dead = True
        for callback in process.at_death:
            callback()
        for thread in process.threads:
            if thread.is_runnable:
                self._runnable.remove(thread)
            if thread.greenlet:  # it has begun and not ended
                self._switch_to(thread, Crashed)
        for loop in list(process.loops):
            _discard(loop)

    # --- what threads do ------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Raises :class:`Crashed` in a thread of a dead process."""
        if self.current is not None and self.current.process.is_dead:
            raise Crashed

    def wake(self, thread: "Thread") -> None:
        """Makes a blocked thread runnable."""
        if not thread.is_runnable and thread is not self.current and not thread.process.is_dead:
            thread.is_runnable = True
            self._runnable.append(thread)

    def block(self, deadline: float | None = None) -> None:
        """Waits to be woken, at the latest until the deadline. It may be woken for nothing."""
        self.check_alive()
        assert self.current is not None
        if deadline is not None:
            self.at(deadline, self.wake, self.current)
        self.hub.switch()
        self.check_alive()

    def preempt(self) -> None:
        """Lets others run first, if the seed says so. The process may crash here."""
        thread = self.current
        if thread is None:
            return
        self.check_alive()
        thread.is_runnable = True
        self._runnable.append(thread)
        self.hub.switch()
        self.check_alive()

    def sleep(self, seconds: float) -> None:
        """Blocks for some seconds."""
        deadline = self.now + seconds
        while self.now < deadline:
            self.block(deadline)

    # --- clocks ---------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """CLOCK_MONOTONIC, which does not count sleep."""
        return 10_000.0 + self.now - self.asleep

    def boottime(self) -> float:
        """CLOCK_BOOTTIME, which counts sleep."""
        return 10_000.0 + self.now

    def time(self) -> float:
        """The wall clock."""
        return START + self.now + self.clock_step


class Thread:
    """Takes the place of `threading.Thread`."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] = lambda: None,
        name: str = "",
        args: tuple[Any, ...] = (),
        *,
        daemon: bool | None = None,
        process: Process | None = None,
    ) -> None:
        self.name, self.daemon = name, daemon
        self._target, self._arguments = target, args
        kernel = Kernel.current_kernel
        if process is None:
            assert kernel.current is not None
            process = kernel.current.process
        self.process: Process = process
        self.greenlet = greenlet(self._run, parent=kernel.hub)
        self.is_runnable = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.hooks: Any = (None, None)
        self.error: BaseException | None = None
        self._joining: list[Thread] = []

    def start(self) -> None:
        """Makes the thread runnable."""
        Kernel.current_kernel.check_alive()
        self.process.threads.append(self)
        Kernel.current_kernel.wake(self)

    def join(self, timeout: float | None = None) -> None:
        """Waits for its end."""
        kernel = Kernel.current_kernel
        deadline = None if timeout is None else kernel.now + timeout
        while self.is_alive() and (deadline is None or kernel.now < deadline):
            assert kernel.current is not None
            self._joining.append(kernel.current)
            kernel.block(deadline)

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not self.greenlet.dead

    def _run(self) -> None:
        try:
            self._target(*self._arguments)
        except Crashed:
            pass
        except BaseException as error:
            self.error = error
        for thread in self._joining:
            Kernel.current_kernel.wake(thread)


class Condition:
    """Takes the place of `threading.Condition`. Nothing blocks inside a lock, so there is no lock."""

    def __init__(self) -> None:
        self._waiting: list[Thread] = []

    def __enter__(self) -> None:
        Kernel.current_kernel.check_alive()

    def __exit__(self, *_: object) -> None:
        pass

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Waits until the predicate holds, at most `timeout` seconds."""
        kernel = Kernel.current_kernel
        deadline = None if timeout is None else kernel.now + timeout
        while not (result := predicate()) and (deadline is None or kernel.now < deadline):
            assert kernel.current is not None
            self._waiting.append(kernel.current)
            kernel.block(deadline)
        return result

    def notify(self, _n: int = 1) -> None:
        """Wakes everybody, as a spurious wake-up may."""
        waiting, self._waiting = self._waiting, []
        for thread in waiting:
            Kernel.current_kernel.wake(thread)

    notify_all = notify


class Event:
    """Takes the place of `threading.Event`."""

    def __init__(self) -> None:
        self._is_set = False
        self._changed = Condition()

    def is_set(self) -> bool:
        """Whether it is set."""
        Kernel.current_kernel.check_alive()
        return self._is_set

    def set(self) -> None:
        """Sets it."""
        self._is_set = True
        self._changed.notify()

    def clear(self) -> None:
        """Resets it."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is set, at most `timeout` seconds."""
        return bool(self._changed.wait_for(lambda: self._is_set, timeout))


class Substitute:
    """A module of which some names are replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self._module = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _discard(loop: asyncio.AbstractEventLoop) -> None:
    """Ends what a dead process was doing: what it raises does not matter, and nobody sees what it does."""
    # In the order in which they were created: `Task-9` before `Task-10`.
    for task in sorted(asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name())):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            task.get_coro().close()
    for generator in list(loop._asyncgens):  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            generator.aclose().send(None)
    loop.close()


def clocks() -> Substitute:
    """Takes the place of the module `time`."""

    def clock_gettime(clock: int) -> float:
        kernel = Kernel.current_kernel
        if clock == time.CLOCK_REALTIME:
            return kernel.time()
        return kernel.boottime() if clock == getattr(time, "CLOCK_BOOTTIME", None) else kernel.monotonic()

    return Substitute(
        time,
        time=lambda: Kernel.current_kernel.time(),
        time_ns=lambda: int(Kernel.current_kernel.time() * 1e9),
        monotonic=lambda: Kernel.current_kernel.monotonic(),
        monotonic_ns=lambda: int(Kernel.current_kernel.monotonic() * 1e9),
        perf_counter=lambda: Kernel.current_kernel.monotonic(),
        clock_gettime=clock_gettime,
        clock_gettime_ns=lambda clock: int(clock_gettime(clock) * 1e9),
        sleep=lambda seconds: Kernel.current_kernel.sleep(seconds),
    )


class Datetime(datetime):
    """Takes the place of `datetime.datetime`."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        """The wall clock of the simulation."""
        return datetime.fromtimestamp(Kernel.current_kernel.time(), tz)


def all_threads(kernel: Kernel) -> Iterator[Thread]:
    """Every thread that was started."""
    for process in kernel.processes:
        yield from process.threads
