"""Identifies the process that holds a lease, and checks whether it still runs.

Process ids are reused, so the start time is part of the identity. A process is visible only within the same
boot of the same machine and the same pid namespace (containers on one host reuse process ids). The state of
any other process is unknown: its lease has to expire.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, identified across machines. `machine` is empty if unknown."""

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
        """Whether the process has certainly ended; False if that is unknown."""
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
    # The second field, the command in parentheses, can itself contain spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
