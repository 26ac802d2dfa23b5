"""Who this process is, and whether another one still lives: what a lease's holder is known by.

A process id alone is not enough, since ids are used again: its start time goes with it. Another process
can only be seen from the same boot of the same machine and the same pid namespace (two containers on one
host see different processes under one number); of any other process nothing is known, and its lease has
to run out.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, known across machines. `machine` is empty where it cannot be told."""

    machine: str
    host: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """This process."""
        pid = os.getpid()
        return cls(_machine(), socket.gethostname(), pid, _start_time(pid) or "")

    def is_surely_dead(self) -> bool:
        """Whether it certainly runs no more; False where that cannot be known."""
        if not self.machine or not self.started or self.machine != _machine():
            return False
        return _start_time(self.pid) != self.started


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """The start time of a running process in clock ticks since boot; None for a dead one or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the command's name in parentheses, and may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
