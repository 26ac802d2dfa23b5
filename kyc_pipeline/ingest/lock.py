"""The lock of the labels: while their tables are replaced, nobody else replaces them or erases a person."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.locks import LOCK_SECONDS, exclusive

LOCK_KEY: Final = "labels"


def labels_lock(
    ledger: Ledger, run_id: str, *, wait_seconds: float = LOCK_SECONDS
) -> AbstractContextManager[Callable[[], None]]:
    """Holds the lock; see :func:`exclusive`."""
    return exclusive(
        ledger, LOCK_KEY, run_id, others="another reading of labels or erasure", wait_seconds=wait_seconds
    )
