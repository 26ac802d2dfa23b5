"""`make fuzz`: tries odd manifests, labels, documents and responses within limits of memory and time.

Each input is written to a file before it is tried, so that one that ends the process can be tried again.
"""

import argparse
import contextlib
import ctypes
import faulthandler
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
from hypothesis import HealthCheck, Phase, given, seed, settings

from bench.peak_memory import peak_bytes
from tests.fuzz.examples import Example
from tests.fuzz.targets import TARGETS, Target

MAX_BYTES: Final = 500_000_000
"""Peak memory of the process (RSS) while it handles one input."""
MAX_CPU_SECONDS: Final = 15.0
"""Of all threads, for one input."""
HANG_SECONDS: Final = 540.0
"""After this, the process prints what its threads do, and ends."""
_EMERGENCY_BYTES: Final = 4_000_000_000
_BATCH: Final = 500


class Limits:
    """Measures what each input costs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.peak_bytes = 0

    @contextlib.contextmanager
    def around(self, example: Example) -> Iterator[None]:
        """Asserts that the block stays within the limits."""
        (self._folder / f"last.{example.kind}").write_bytes(example.content)
        # What it took to make the input is not what it costs.
        pa.default_memory_pool().release_unused()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        started = time.process_time()
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
        seconds, peak = time.process_time() - started, peak_bytes()
        self.peak_bytes = max(self.peak_bytes, peak)
        assert seconds <= MAX_CPU_SECONDS, f"{seconds:.0f} CPU seconds, more than {MAX_CPU_SECONDS:.0f}"
        assert peak <= MAX_BYTES, f"{peak >> 20} MiB of memory, more than {MAX_BYTES >> 20}"


def fuzz(target: Target, limits: Limits, *, tries: int, seconds: float, derandomize: bool) -> tuple[int, int]:
    """Tries the bombs, then `tries` inputs, then others for `seconds`.

    Returns how many inputs the target accepted, and how many it got. Raises what the first bad input raises,
    with the input.
    """
    accepted = tried = 0

    def attempt(example: Example) -> None:
        nonlocal accepted, tried
        with limits.around(example):
            accepted += target(example)
        tried += 1

    for bomb in target.bombs():
        try:
            attempt(bomb)
        except BaseException as error:
            error.add_note(f"bomb of kind {bomb.kind}, {len(bomb.content)} bytes: {bomb.content[:80]!r}")
            raise
    until = time.monotonic() + seconds
    batch = 0
    while tries > 0 or time.monotonic() < until:
        options = settings(
            max_examples=min(_BATCH, tries) if tries > 0 else _BATCH,
            database=None,
            deadline=None,
            derandomize=derandomize,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        test = options(given(target.strategy)(attempt))
        (test if derandomize else seed(f"{time.time_ns()}-{batch}")(test))()
        tries -= _BATCH
        batch += 1
    return accepted, tried


def main() -> int:
    """The command line. Exit code 1: an input breaks a rule."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="by default, each in turn")
    parser.add_argument(
        "--seconds", type=float, default=0, help="how long to try random inputs of each target"
    )
    parser.add_argument("--tries", type=int, default=0, help="try this many inputs, the same in each run")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try one input, such as a kept last.csv")
    given_options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (_EMERGENCY_BYTES, _EMERGENCY_BYTES))
    for name in given_options.target or TARGETS:
        folder = Path(tempfile.mkdtemp(prefix=f"kyc-fuzz-{name}-"))
        print(f"{name}: the last input is kept in {folder}", flush=True)
        target, limits = TARGETS[name](folder), Limits(folder)
        if given_options.replay:
            kind = given_options.replay.name.partition(".")[2]
            with limits.around(example := Example(kind, given_options.replay.read_bytes())):
                accepted, tried = int(target(example)), 1
        else:
            accepted, tried = fuzz(
                target,
                limits,
                tries=given_options.tries,
                seconds=given_options.seconds,
                derandomize=not given_options.seconds,
            )
        print(
            f"{name}: {tried} inputs, {accepted} accepted, {limits.peak_bytes >> 20} MiB at most", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
