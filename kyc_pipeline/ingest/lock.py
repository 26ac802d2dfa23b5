"""The ingest lock: over all processes and hosts, only one day at a time may accept ids.

It is a ledger lease whose key is not a date. It is renewed while it is held, free at once if its holder died
on this host, and free when the lease expires if the holder's host died.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import PartitionBusy, hold

LOCK_KEY: Final = "ingest"
LOCK_SECONDS: Final = 900
_POLL_SECONDS: Final = 0.2


@contextlib.contextmanager
def ingest_lock(
    ledger: Ledger, run_id: str, *, wait_seconds: float = LOCK_SECONDS
) -> Iterator[Callable[[], None]]:
    """Holds the ingest lock, without which two days could accept the same id.

    Yields a function that raises :class:`LeaseLost` if the lock is lost: call it before and after you
    publish a partition. Raises :class:`PartitionBusy` with the holder's name after `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    with contextlib.ExitStack() as stack:
        while True:
            try:
                check = stack.enter_context(hold(ledger, LOCK_KEY, run_id)).check
                break
            except PartitionBusy as error:
                if time.monotonic() >= deadline:
                    raise PartitionBusy(
                        f"waited {wait_seconds:.0f} s for another ingest or erasure: {error}"
                    ) from error
            time.sleep(_POLL_SECONDS)
        yield check
