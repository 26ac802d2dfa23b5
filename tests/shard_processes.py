"""Finds the processes of the shards of a day."""

import contextlib
import os
from pathlib import Path


def shard_processes(run: int | None = None) -> list[int]:
    """Those that the process `run` has started (by default, this one), in the order of their shards."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
            if parent == (run or os.getpid()) and b"kyc_pipeline.verify.shard_process" in command:
                found.append(int(folder.name))
    return sorted(found)


def runs(pid: int) -> bool:
    """Whether the process runs; False for one that has ended, though nobody has waited for it."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
