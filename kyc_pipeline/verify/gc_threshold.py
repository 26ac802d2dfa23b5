"""Raises the threshold of Python's garbage collector while a run makes calls: see ADR 0009."""

import contextlib
import gc
from collections.abc import Iterator
from typing import Final

_THRESHOLD: Final = 20_000
"""Net allocations before a collection. Calls leave few cycles behind."""


@contextlib.contextmanager
def raised_gc_threshold() -> Iterator[None]:
    """Collects less often until the block ends; keeps a higher threshold or a disabled collector."""
    before = gc.get_threshold()
    if before[0]:  # 0: disabled
        gc.set_threshold(max(before[0], _THRESHOLD), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
