"""The ingest lock: over all processes and hosts, only one day at a time may accept ids.

It is a ledger lease whose key is not a date. It is renewed while it is held, free at once if its holder died
on this host, and free when the lease expires if the holder's host died.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Final

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import PartitionBusy, hold

LOCK_KEY: Final = "ingest"
LOCK_SECONDS: Final = 900
_POLL_SECONDS: Final = 0.2
_SILENT_SECONDS: Final = 10.0
"""A longer wait is logged."""
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def ingest_lock(
    ledger: Ledger, run_id: str, *, wait_seconds: float = LOCK_SECONDS
) -> Iterator[Callable[[], None]]:
    """Holds the ingest lock, without which two days could accept the same id.

    Yields a function that raises :class:`LeaseLost` if the lock is lost: call it before and after you
    publish a partition. Raises :class:`PartitionBusy` with the holder's name after `wait_seconds`.
    """
    started = time.monotonic()
    is_announced = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                check = stack.enter_context(hold(ledger, LOCK_KEY, run_id)).check
                break
            except PartitionBusy as error:
                waited = time.monotonic() - started
                if waited >= wait_seconds:
                    raise PartitionBusy(
                        f"waited {wait_seconds:.0f} s for another ingest or erasure: {error}"
                    ) from error
                if waited >= _SILENT_SECONDS and not is_announced:
                    is_announced = True
                    _logger.warning("waiting up to %.0f s for the ingest lock: %s", wait_seconds, error)
            time.sleep(_POLL_SECONDS)
        yield check
