"""The processes of shards in the simulation: processes of the kernel, and connections between them.

They run production code, with the world's ledger and lake. If their run is killed, the kernel kills them at
once, or, as on a system without PR_SET_PDEATHSIG, they live on until they notice it themselves.
"""

import itertools
import os
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from kyc_pipeline.ledger import leases
from kyc_pipeline.verify import shard, shard_process, shards
from tests.simulation.kernel import Condition, Kernel, Process, Substitute

if TYPE_CHECKING:
    from tests.simulation.world import World

_ORPHANED = 1
"""Whom a process has as its parent when its own has died."""


class _Connection:
    """One end of `multiprocessing.Pipe()`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.peer: _Connection = self
        self._messages: deque[bytes] = deque()
        self._changed = Condition()
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Here there is no copy that the child has inherited, so this one stays open."""

    def fileno(self) -> int:
        """Identifies it."""
        return self.number

    def send(self, message: object) -> None:
        """Sends a message; OSError if one of the ends is closed."""
        Kernel.current_kernel.check_alive()
        if self._is_closed or self.peer._is_closed:
            raise BrokenPipeError
        self.peer._messages.append(pickle.dumps(message))
        self.peer._changed.notify()

    def recv(self) -> Any:
        """Waits for a message; EOFError if none can come."""
        self._changed.wait_for(lambda: self._messages or self._is_closed or self.peer._is_closed)
        if self._messages and not self._is_closed:
            return pickle.loads(self._messages.popleft())
        raise EOFError

    def close(self) -> None:
        """Closes this end."""
        self._is_closed = True
        for end in (self, self.peer):
            end._changed.notify()


class _Popen:
    """Takes the place of `subprocess.Popen`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def wait(self) -> int:
        """Waits for the end; returns the exit code."""
        kernel = Kernel.current_kernel
        while self._process.is_running():
            kernel.block(kernel.now + 0.1)
        return -9 if self._process.is_dead else 0


def replace_processes(replace: Callable[[Any, str, Any], None], world: "Callable[[], World]") -> None:
    """Puts the processes of shards on the kernel."""
    numbers = itertools.count()
    ends: dict[int, _Connection] = {}
    parents: dict[Process, Process] = {}

    def pipe() -> tuple[_Connection, _Connection]:
        here, there = _Connection(next(numbers)), _Connection(next(numbers))
        here.peer, there.peer = there, here
        ends[there.number] = there
        return here, there

    def start(arguments: Sequence[str], _inherited: Sequence[int]) -> _Popen:
        kernel = Kernel.current_kernel
        assert kernel.current is not None
        run, theirs = kernel.current.process, ends.pop(int(arguments[-1]))

        def main() -> None:
            try:
                shard_process._ShardProcess(theirs, run.pid).run()  # type: ignore[arg-type]
            finally:
                theirs.close()

        process = kernel.spawn(run.name, run.machine, main)
        parents[process] = run
        process.at_death.append(theirs.close)
        run.at_death.append(theirs.peer.close)
        if world().rng.random() < 0.5:
            run.at_death.append(lambda: kernel.kill(process))
        world().plan_mishaps_of_shard(process)
        return _Popen(process)

    def getppid() -> int:
        kernel = Kernel.current_kernel
        assert kernel.current is not None
        parent = parents[kernel.current.process]
        return _ORPHANED if parent.is_dead else parent.pid

    replace(shard, "SUBMISSIONS_WORTH_A_PROCESS", 1)
    replace(shard, "CALLS_WORTH_A_PROCESS", 1)
    replace(shards, "Pipe", pipe)
    replace(shards, "_start", start)
    replace(leases, "os", Substitute(os, getppid=getppid))
