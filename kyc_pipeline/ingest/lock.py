"""The ingest lock: over all processes and hosts, only one day at a time may accept ids."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.locks import LOCK_SECONDS, exclusive

LOCK_KEY: Final = "ingest"


def ingest_lock(
    ledger: Ledger, run_id: str, *, wait_seconds: float = LOCK_SECONDS
) -> AbstractContextManager[Callable[[], None]]:
    """Holds the lock without which two days could accept the same id; see :func:`exclusive`."""
    return exclusive(ledger, LOCK_KEY, run_id, others="another ingest or erasure", wait_seconds=wait_seconds)
