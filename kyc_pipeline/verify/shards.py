"""Settles a large day in several processes, one per shard: the run's part.

The run holds the day's lease, as with one process, and its processes share it. It adds up what they report,
passes on every reason to stop, and returns when all of them have ended: only then may it release the lease.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Final

import kyc_pipeline
from kyc_pipeline.errors import KycError
from kyc_pipeline.verify.control import RunControl
from kyc_pipeline.verify.messages import Note, Report, Task
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import Stopped, Tally

_MODULE: Final = "kyc_pipeline.verify.shard_process"
_OBEY_SECONDS: Final = 10.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""The run gets them too, or instead, and tells its processes what to do."""


class ShardLost(KycError):
    """The process of a shard ended without a report, so a part of the day is left."""


async def settle_shards(
    tasks: Sequence[Task], control: RunControl, stop: StopFlag, tally: Tally
) -> tuple[int, bool]:
    """Settles each task in a process of its own; adds to `tally`, and ends `control` if a process ends early.

    The processes go on if one of them is lost. Returns the ledger's newest generation, and whether `tally`
    has all that they did: a lost process takes what it did last with it.
    """
    run = _Shards(control, stop, tally, asyncio.get_running_loop())
    with stop.watched(run.tell_soon):
        try:
            for task in tasks:
                run.start(task)
        finally:
            await run.ended(are_all=len(run.processes) == len(tasks))
    return run.generation, not run.has_lost


class _Shards:
    """The processes of a run. All methods run in its event loop, except `tell_soon`."""

    def __init__(
        self, control: RunControl, stop: StopFlag, tally: Tally, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.processes: list[_Process] = []
        self.generation = 0
        self._control = control
        self._stop = stop
        self._tally = tally
        self._loop = loop
        self._lost: ShardLost | None = None

    def start(self, task: Task) -> None:
        """Starts a process. Raises OSError."""
        self.processes.append(_Process(task, self._loop, self._take))
        self._tell()  # a stop request may be older

    def tell_soon(self) -> None:
        """Passes on the stop request."""
        self._loop.call_soon_threadsafe(self._tell)

    async def ended(self, *, are_all: bool) -> None:
        """Waits for all processes; stops them first if not all of them could be started."""
        if not are_all:
            self._control.end(Stopped.ERROR)
            self._tell()
        await asyncio.gather(*(process.ended for process in self.processes))
        if self._lost is not None:
            self._control.end(Stopped.ERROR, self._lost)

    @property
    def has_lost(self) -> bool:
        """Whether a process ended without its last report."""
        return self._lost is not None

    def _take(self, process: "_Process", message: Report | Note | ShardLost) -> None:
        if isinstance(message, Note):
            logging.getLogger(message.logger).log(message.level, message.text)
        elif isinstance(message, ShardLost):
            self._lost = self._lost or message
        else:
            self._tally.advance(process.tally, message.tally)
            process.tally = message.tally
            self.generation = max(self.generation, message.generation)
            if message.reason is not Stopped.NONE:
                self._control.end(message.reason, message.error)
                self._tell()

    def _tell(self) -> None:
        if self._control.halted:  # the end of a budget is no reason: each process comes to it
            for process in self.processes:
                process.tell(immediate=self._stop.immediate)


class _Process:
    """One process, and the thread that listens to it."""

    def __init__(
        self,
        task: Task,
        loop: asyncio.AbstractEventLoop,
        take: Callable[["_Process", Report | Note | ShardLost], None],
    ) -> None:
        self.tally = Tally()
        """As it was last reported."""
        self.ended: asyncio.Future[None] = loop.create_future()
        self._shard = task.shard
        self._loop = loop
        self._take = take
        self._connection, theirs = Pipe()
        with theirs:
            inherited = [theirs.fileno(), *([] if task.budget is None else [task.budget])]
            self._process = _start([_MODULE, str(os.getpid()), str(theirs.fileno())], inherited)
        threading.Thread(target=self._listen, name=f"{task.shard}", daemon=True).start()
        self._send(task)

    def tell(self, *, immediate: bool) -> None:
        """Tells the process to start no new call or, if `immediate`, to abandon those in flight too.

        One that does not obey in time, such as a stopped one, is killed: its calls become uncertain.
        """
        self._send(immediate)
        if immediate:
            self._loop.call_later(_OBEY_SECONDS, self._process.kill)

    def _send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self._connection.send(message)

    def _listen(self) -> None:
        """Passes on what the process says until it has ended."""
        is_whole = False
        with contextlib.suppress(Exception):  # the connection is closed, or what it said is no message
            while not is_whole:
                message = self._connection.recv()
                self._loop.call_soon_threadsafe(self._take, self, message)
                is_whole = isinstance(message, Report) and message.is_last
        self._loop.call_soon_threadsafe(self._connection.close)  # a process that still runs stops
        code = self._process.wait()
        if not is_whole:
            how = (
                f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            )
            lost = ShardLost(f"the process of {self._shard} {how}: check whether memory is short")
            self._loop.call_soon_threadsafe(self._take, self, lost)
        self._loop.call_soon_threadsafe(self.ended.set_result, None)


def _start(arguments: list[str], inherited: Sequence[int]) -> "subprocess.Popen[bytes]":
    """Starts Python with this very package and with `_SIGNALS` blocked."""
    paths = [str(Path(kyc_pipeline.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=inherited,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
