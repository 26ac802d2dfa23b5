"""Identifies the process that holds a lease, and finds out whether it still runs.

Process ids are reused, so the start time is part of the identity. A process is visible only within the same
boot of the same machine and the same pid namespace (containers on one host reuse process ids), and its start
time is comparable only within the same time namespace. About any other process nothing is known: its lease
must expire.
"""

import os
import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

_NAMESPACES: Final = ("pid", "time")


class Life(Enum):
    """What is known of a process."""

    RUNNING = "running"
    STOPPED = "stopped"
    """Stopped by SIGSTOP, a terminal or a debugger: it does nothing until it is continued."""
    DEAD = "dead"
    """It has certainly ended."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, identified across machines.

    `machine` is where it is visible: the boot's id and the namespaces, `<boot>/<pid>/<time>`, each empty if
    unknown.
    """

    machine: str
    host: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """This process."""
        pid = os.getpid()
        _, started = _state_and_start(pid) if _proc_is_ours() else ("", "")
        return cls(_machine(), socket.gethostname(), pid, started)

    @property
    def boot(self) -> str:
        """The id of the machine's boot; empty if unknown."""
        boot, slash, _ = self.machine.partition("/")
        return boot if slash else ""

    def shares_boot_clock(self, other: "ProcessIdentity") -> bool:
        """Whether both certainly read the same boot clock."""
        mine, theirs = (each.machine.split("/")[::2] for each in (self, other))
        return len(mine) == 2 and all(mine) and mine == theirs

    def is_surely_dead(self) -> bool:
        """Whether the process has certainly ended; False if that is unknown."""
        return self.life() is Life.DEAD

    def life(self) -> Life:
        """What the process does now, as far as this process can see it."""
        if not self.started or not all(self.machine.split("/")) or self.machine != _machine():
            return Life.UNKNOWN
        # The kernel knows the process even where /proc hides it (`hidepid`).
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return Life.DEAD
        except OSError:
            pass  # it is another user's
        state, started = _state_and_start(self.pid)
        if not started:
            return Life.UNKNOWN
        if started != self.started or state in "ZX":
            return Life.DEAD
        return Life.STOPPED if state in "Tt" else Life.RUNNING


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return "/".join([boot, *(_namespace(name) if _proc_is_ours() else "" for name in _NAMESPACES)])


def _proc_is_ours() -> bool:
    """Whether /proc shows this pid namespace, and not that of a container around it."""
    try:
        return str(Path("/proc/self").readlink()) == str(os.getpid())
    except OSError:
        return False


def _namespace(name: str) -> str:
    try:
        return str(Path(f"/proc/self/ns/{name}").readlink())
    except FileNotFoundError:
        return f"{name}:none"  # the kernel has no such namespaces: all processes share one
    except OSError:
        return ""


def _state_and_start(pid: int) -> tuple[str, str]:
    """State letter and start time (in clock ticks since boot) of a process; empty if they cannot be read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    # The second field, the command in parentheses, can itself contain spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return fields[0], fields[19]
