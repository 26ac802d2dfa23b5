"""Locks over all processes and hosts: leases that a process waits for, and whose key is not a date.

A lock is renewed while it is held, free at once if its holder died on this host, and free when the lease
expires if the holder's host died.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Final

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import PartitionBusy, hold

LOCK_SECONDS: Final = 900
"""How long to wait for a lock, by default."""
POLL_SECONDS: Final = 0.2
_SILENT_SECONDS: Final = 10.0
"""A longer wait is logged."""
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive(
    ledger: Ledger, key: str, run_id: str, *, others: str, wait_seconds: float = LOCK_SECONDS
) -> Iterator[Callable[[], None]]:
    """Holds the lock `key` while the block runs. `others` says in messages who else may hold it.

    Yields a function that raises :class:`LeaseLost` if the lock is lost: call it before a change that cannot
    be undone. Raises :class:`PartitionBusy` with the holder's name after `wait_seconds`.
    """
    started = time.monotonic()
    is_announced = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                check = stack.enter_context(hold(ledger, key, run_id)).check
                break
            except PartitionBusy as error:
                waited = time.monotonic() - started
                if waited >= wait_seconds:
                    raise PartitionBusy(f"waited {wait_seconds:.0f} s for {others}: {error}") from error
                if waited >= _SILENT_SECONDS and not is_announced:
                    is_announced = True
                    _logger.warning("waiting up to %.0f s for %s: %s", wait_seconds, others, error)
            time.sleep(POLL_SECONDS)
        yield check
