"""Keeping a partition's lease while work goes on: verify's own, and what else may not run beside it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Self

from kyc_pipeline.errors import KycError
from kyc_pipeline.ledger.ledger import Lease, Ledger, LedgerError


class LeaseLost(KycError):
    """Another run took the partition over while this one was out of touch with the ledger."""


class LeaseKeeper:
    """Renews a lease from a thread of its own while the `with` block runs; `on_loss` is called once."""

    def __init__(self, ledger: Ledger, lease: Lease, on_loss: Callable[[], None] = lambda: None) -> None:
        self._ledger = ledger
        self._lease = lease
        self._on_loss = on_loss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease-keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def check(self) -> None:
        """Renews the lease now. Raises :class:`LeaseLost`: the partition is the other run's to write."""
        if not self._ledger.renew(self._lease):
            raise LeaseLost(
                f"partition {self._lease.partition_date} was taken over by another run: "
                "every answer is in the ledger; run the partition again when that run has ended"
            )

    def _keep(self) -> None:
        while not self._done.wait(self._ledger.lease_seconds / 3):
            # Who works under the lease meets a failing ledger too, and decides how long to wait.
            with contextlib.suppress(LedgerError):
                if not self._ledger.renew(self._lease):
                    self._on_loss()
                    return


@contextlib.contextmanager
def holding(ledger: Ledger, date: str, run_id: str) -> Iterator[Callable[[], None]]:
    """Holds the lease of partition `date`: nobody verifies it meanwhile.

    The value raises :class:`LeaseLost` unless the lease is still ours; ask it before what cannot be undone.
    Raises :class:`PartitionBusy` with the holder's name.
    """
    lease = ledger.acquire(date, run_id)
    try:
        with LeaseKeeper(ledger, lease) as keeper:
            yield keeper.check
    finally:
        # A ledger that fails has said so already; the lease runs out by itself.
        with contextlib.suppress(LedgerError):
            ledger.release(lease)
