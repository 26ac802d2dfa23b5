"""A run that Dagster starts in the place of a lost one waits for what that run cannot give back.

The lease of a day outlives a run whose container or host is gone, by up to a minute. Dagster may notice the
loss sooner; the run that it then starts would fail, and it starts no third one.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import PartitionBusy, acquire_lease, leased_partitions, release_lease

_POLL_SECONDS: Final = 1.0
_logger = logging.getLogger(__name__)


def take_over(
    ledger: Ledger,
    day: str,
    run_id: str,
    replaced: str | None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Waits until the day's lease is free, if the run `replaced` has it.

    It waits no longer than a lease lasts: a run that lives after all renews its lease, and keeps the day.
    """
    waited = 0.0
    while replaced and leased_partitions(ledger).get(day) == replaced and not _is_free(ledger, day, run_id):
        if waited == 0:
            _logger.warning("%s: waiting for the lease of the lost run %s to expire", day, replaced)
        if waited > ledger.lease_seconds:
            return
        pause(_POLL_SECONDS)
        waited += _POLL_SECONDS


def _is_free(ledger: Ledger, day: str, run_id: str) -> bool:
    try:
        release_lease(ledger, acquire_lease(ledger, day, run_id))
    except PartitionBusy:
        return False
    return True
