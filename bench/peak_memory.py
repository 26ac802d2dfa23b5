"""The peak of a process's memory, for benchmarks and tests."""

from pathlib import Path


def peak_bytes() -> int:
    """The most memory that this program has used so far, in bytes (Linux).

    Not `ru_maxrss`: that one survives `exec`, so a program started from a larger process begins with the peak
    of that process.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
