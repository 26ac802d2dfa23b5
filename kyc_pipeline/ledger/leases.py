"""Leases: the exclusive right to verify, ingest or erase a partition."""

import contextlib
import dataclasses
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, delete, select, update

from kyc_pipeline.errors import KycError
from kyc_pipeline.ledger.database import Ledger, LedgerError, insert_if_absent
from kyc_pipeline.ledger.models import Lease, State
from kyc_pipeline.ledger.process import ProcessIdentity
from kyc_pipeline.ledger.schema import leases, submissions
from kyc_pipeline.ledger.times import now

_INTERRUPTED: Final = "the run that sent it ended before the answer was recorded"


class PartitionBusy(KycError):
    """Another run has the partition's lease."""


class LeaseLost(KycError):
    """Another run took the partition over while this one could not reach the ledger."""


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease that is renewed while the block of :func:`hold` runs."""

    ledger: Ledger
    lease: Lease

    def check(self) -> None:
        """Renews the lease now. Raises :class:`LeaseLost` if another run has taken it."""
        if not renew_lease(self.ledger, self.lease):
            raise LeaseLost(
                f"partition {self.lease.partition_date} was taken over by another run: "
                "every answer is in the ledger; run the partition again when that run has ended"
            )


@contextlib.contextmanager
def hold(
    ledger: Ledger, partition_date: str, run_id: str, on_loss: Callable[[], None] = lambda: None
) -> Iterator[HeldLease]:
    """Holds the partition's lease while the block runs. Raises :class:`PartitionBusy` with the holder's name.

    A thread renews the lease, and calls `on_loss` once if another run takes it. Call `check` before a change
    that cannot be undone.
    """
    lease = acquire_lease(ledger, partition_date, run_id)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(ledger.lease_seconds / 3):
            # If the ledger fails, the block sees it too and decides how long to wait.
            with contextlib.suppress(LedgerError):
                if not renew_lease(ledger, lease):
                    on_loss()
                    return

    renewer = threading.Thread(target=renew, name="lease-renewer", daemon=True)
    try:
        renewer.start()
        try:
            yield HeldLease(ledger, lease)
        finally:
            done.set()
            renewer.join()
    finally:
        # If the ledger fails, the block has already raised an error, and the lease will expire.
        with contextlib.suppress(LedgerError):
            release_lease(ledger, lease)


def acquire_lease(ledger: Ledger, partition_date: str, run_id: str) -> Lease:
    """Takes the partition's lease; open claims of an earlier holder become uncertain.

    Raises :class:`PartitionBusy` with the holder's name if another run has it. A holder that is certainly
    dead (same machine, no such process) loses it at once.
    """
    lease = Lease(partition_date, secrets.token_hex(16), run_id)
    with ledger.write() as connection:
        _take(ledger, connection, lease)
        return dataclasses.replace(lease, recovered=_mark_open_claims(connection, partition_date))


def _take(ledger: Ledger, connection: Connection, lease: Lease) -> None:
    me = ProcessIdentity.current()
    acquired_at = ledger.now(connection)
    values: dict[str, Any] = {
        "token": lease.token,
        "machine": me.machine,
        "host": me.host,
        "pid": me.pid,
        "pid_started": me.started,
        "run_id": lease.run_id,
        "acquired_at": acquired_at,
        "expires_at": acquired_at + _lifetime(ledger),
    }
    # Of two concurrent INSERTs one succeeds; the other waits and then sees the row.
    if insert_if_absent(connection, leases, partition_date=lease.partition_date, **values):
        return
    of_partition = leases.c.partition_date == lease.partition_date
    row = connection.execute(select(leases).where(of_partition).with_for_update()).one_or_none()
    if row is None:  # released after the INSERT failed
        if not insert_if_absent(connection, leases, partition_date=lease.partition_date, **values):
            raise PartitionBusy(f"partition {lease.partition_date} was just taken by another run: try again")
        return
    holder = ProcessIdentity(row.machine, row.host, row.pid, row.pid_started)
    if row.expires_at > ledger.now(connection) and not holder.is_surely_dead():
        raise PartitionBusy(
            f"partition {lease.partition_date} is being worked on by run {row.run_id} "
            f"(process {row.pid} on {row.host}): wait for it to end"
        )
    connection.execute(update(leases).where(of_partition).values(**values))


def renew_lease(ledger: Ledger, lease: Lease) -> bool:
    """Extends the lease; False if another run has taken it."""
    with ledger.write() as connection:
        changed = connection.execute(
            update(leases)
            .where(leases.c.partition_date == lease.partition_date, leases.c.token == lease.token)
            .values(expires_at=ledger.now(connection) + _lifetime(ledger))
        )
        return bool(changed.rowcount)


def release_lease(ledger: Ledger, lease: Lease) -> int:
    """Ends the lease. Open claims become uncertain; returns how many."""
    with ledger.write() as connection:
        if not is_held(connection, lease):
            return 0
        marked = _mark_open_claims(connection, lease.partition_date)
        connection.execute(delete(leases).where(leases.c.token == lease.token))
        return marked


def mark_open_claims_uncertain(ledger: Ledger, lease: Lease) -> int:
    """Makes open claims uncertain; returns how many. Call it when all calls of the run have ended."""
    with ledger.write() as connection:
        return _mark_open_claims(connection, lease.partition_date) if is_held(connection, lease) else 0


def is_held(connection: Connection, lease: Lease) -> bool:
    """Whether the lease is still held. Locks its row until the transaction ends."""
    query = select(leases.c.token).where(leases.c.partition_date == lease.partition_date).with_for_update()
    return bool(connection.execute(query).scalar_one_or_none() == lease.token)


def _mark_open_claims(connection: Connection, partition_date: str) -> int:
    return connection.execute(
        update(submissions)
        .where(submissions.c.partition_date == partition_date, submissions.c.state == State.CLAIMED)
        .values(state=State.UNCERTAIN, decision=None, error=_INTERRUPTED, updated_at=now())
    ).rowcount


def _lifetime(ledger: Ledger) -> int:
    """How long a lease is valid, in microseconds."""
    return int(ledger.lease_seconds * 1_000_000)
