"""Leases: the exclusive right to verify, ingest or erase a partition.

A lease is taken over only if its holder has certainly ended, or if it has expired and nothing shows that the
holder still exists. A stopped process (SIGSTOP) exists: it keeps its lease. A process that shares a boot
clock with the holder uses that clock, so a wrong or changed wall clock does not matter. Others use the wall
clock, but never wait longer than a lease lasts.

A suspended holder learns of a takeover before it sends: see :meth:`HeldLease.confirm`. The child processes of
a holder can share its lease: see :func:`share`.
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Self

from sqlalchemy import Connection, Row, bindparam, delete, select, update

from kyc_pipeline.days import is_day
from kyc_pipeline.errors import KycError
from kyc_pipeline.ledger.database import Ledger, LedgerError, insert_if_absent
from kyc_pipeline.ledger.models import Lease, State
from kyc_pipeline.ledger.process import Life, ProcessIdentity
from kyc_pipeline.ledger.schema import leases, submissions
from kyc_pipeline.ledger.times import SECOND, now

_MARGIN: Final = 0.1
"""This share at the end of a lease counts as expired, because sending takes time too."""
_INTERRUPTED: Final = "the run that sent it ended before the response was recorded"


class PartitionBusy(KycError):
    """Another run has the lease of the partition, or the lock."""


class LeaseLost(KycError):
    """Another run took the partition over while this one could not reach the ledger."""


def lease_lost(lease: Lease) -> LeaseLost:
    """The error for a lease that another run has taken."""
    return LeaseLost(
        f"{_named(lease.partition_date)} was taken over by another run: "
        "nothing that was recorded is lost; start again when that run has ended"
    )


@dataclass(slots=True)
class HeldLease:
    """A lease that is renewed while the block of :func:`hold` runs."""

    ledger: Ledger
    lease: Lease
    _sure_until: tuple[int, int] = field(repr=False)
    """By this machine's wall clock and boot clock, read before the last renewal."""
    on_loss: Callable[[], None] = lambda: None
    """Called as soon as it is known that another run has taken the lease; perhaps more than once."""
    holder: int | None = None
    """The parent process, if it has taken the lease: once it is dead, anybody may take the lease over."""

    @classmethod
    def acquire(cls, ledger: Ledger, partition_date: str, run_id: str) -> Self:
        """Takes the lease, as :func:`acquire_lease` does."""
        sure_until = _sure_until(ledger)
        return cls(ledger, acquire_lease(ledger, partition_date, run_id), sure_until)

    def renew(self) -> bool:
        """Extends the lease; False if another run has taken it."""
        sure_until = _sure_until(self.ledger)
        if not renew_lease(self.ledger, self.lease):
            self.on_loss()
            return False
        self._sure_until = sure_until
        return True

    def check(self) -> None:
        """Renews the lease now. Raises :class:`LeaseLost` if another run has taken it, or may at any time."""
        if self._is_orphan:
            raise LeaseLost(
                f"the run that has partition {self.lease.partition_date} has ended: "
                "nothing that was recorded is lost; start again"
            )
        if not self.renew():
            raise lease_lost(self.lease)

    @property
    def _is_orphan(self) -> bool:
        return self.holder is not None and os.getppid() != self.holder

    @property
    def is_sure(self) -> bool:
        """Whether this machine's clocks alone show that no other run can have taken the lease.

        They suffice for SQLite, whose users are all on this machine, but not for PostgreSQL: the clocks of a
        paused virtual machine may not count the pause.
        """
        clock = self.ledger.clock
        wall, boot = self._sure_until
        is_current = clock.now() < wall and clock.since_boot() < boot
        return self.ledger.file is not None and is_current and not self._is_orphan

    def confirm(self) -> None:
        """As `check`, but cheaper: renews only if the lease is about to expire.

        Call it just before something irreversible.
        """
        if not self.is_sure and (self._is_orphan or not self._is_in_force()):
            self.check()

    def _is_in_force(self) -> bool:
        columns = leases.c.token, leases.c.expires_at
        query = select(*columns).where(leases.c.partition_date == self.lease.partition_date)
        with self.ledger.read() as connection:
            row = connection.execute(query).one_or_none()
            if row is None or row.token != self.lease.token:
                return False
            return bool(row.expires_at - self.ledger.now(connection) > _lifetime(self.ledger) * _MARGIN)


@contextlib.contextmanager
def hold(
    ledger: Ledger, partition_date: str, run_id: str, on_loss: Callable[[], None] = lambda: None
) -> Iterator[HeldLease]:
    """Holds the partition's lease while the block runs. Raises :class:`PartitionBusy` with the holder's name.

    A thread renews the lease, and calls `on_loss` if another run takes it. Call `check` before a change that
    cannot be undone.
    """
    held = HeldLease.acquire(ledger, partition_date, run_id)
    held.on_loss = on_loss
    try:
        with _renewed(held):
            yield held
    finally:
        # If the ledger fails, the block has already raised an error, and the lease will expire.
        with contextlib.suppress(LedgerError):
            release_lease(ledger, held.lease)


@contextlib.contextmanager
def share(
    ledger: Ledger, lease: Lease, holder: int, on_loss: Callable[[], None] = lambda: None
) -> Iterator[HeldLease]:
    """Holds, in a child process, the lease that its parent `holder` has taken and will release.

    The parent must not release it before the child has ended. Raises :class:`LeaseLost` if it is lost.
    """
    held = HeldLease(ledger, lease, (0, 0), on_loss, holder)
    held.check()
    with _renewed(held):
        yield held


@contextlib.contextmanager
def _renewed(held: HeldLease) -> Iterator[None]:
    """Renews the lease in a thread while the block runs."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(held.ledger.lease_seconds / 3):
            # If the ledger fails, the block sees it too and decides how long to wait.
            with contextlib.suppress(LedgerError):
                if not held.renew():
                    return

    renewer = threading.Thread(target=renew, name="lease-renewer", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()


def acquire_lease(ledger: Ledger, partition_date: str, run_id: str) -> Lease:
    """Takes the partition's lease; open claims of an earlier holder become uncertain.

    Raises :class:`PartitionBusy` with the holder's name and what to do if another run has it. A holder that
    is certainly dead loses it at once.
    """
    lease = Lease(partition_date, secrets.token_hex(16), run_id)
    with ledger.write() as connection:
        refusal = _take(ledger, connection, lease)
        if refusal is None:
            _mark_open_claims(connection, partition_date)
            return lease
    raise PartitionBusy(refusal)


def _take(ledger: Ledger, connection: Connection, lease: Lease) -> str | None:
    """Takes the lease; if another run has it, returns the refusal."""
    me = ProcessIdentity.current()
    values: dict[str, Any] = {
        "token": lease.token,
        "machine": me.machine,
        "host": me.host,
        "pid": me.pid,
        "pid_started": me.started,
        "run_id": lease.run_id,
        "acquired_at": ledger.now(connection),
        **_expiry(ledger, connection),
    }
    # Of two concurrent INSERTs one succeeds; the other waits and then sees the row.
    if insert_if_absent(connection, leases, partition_date=lease.partition_date, **values):
        return None
    of_partition = leases.c.partition_date == lease.partition_date
    row = connection.execute(select(leases).where(of_partition).with_for_update()).one_or_none()
    if row is None:  # released after the INSERT failed
        if insert_if_absent(connection, leases, partition_date=lease.partition_date, **values):
            return None
        return f"{_named(lease.partition_date)} was just taken by another run: try again"
    holder = ProcessIdentity(row.machine, row.host, row.pid, row.pid_started)
    life = holder.life()
    left = _left(ledger, connection, row, holder, me)
    # This process runs, so a lease of its own that was not renewed belongs to a block that has ended.
    is_visible = life in (Life.RUNNING, Life.STOPPED) and holder != me
    if life is Life.DEAD or (left <= 0 and not is_visible):
        connection.execute(update(leases).where(of_partition).values(**values))
        return None
    if left > _lifetime(ledger):  # a clock was ahead: if the holder lives, it renews its lease in time
        left = _lifetime(ledger)
        clamped = values["acquired_at"] + left
        connection.execute(update(leases).where(of_partition).values(expires_at=clamped))
    return (
        f"{_named(lease.partition_date)} is held by run {row.run_id} "
        f"(process {row.pid} on {row.host}): {_advice(life, row.pid, left / SECOND)}"
    )


def _named(key: str) -> str:
    """A lease's key for messages: that of a lock is not a date."""
    return f"partition {key}" if is_day(key) else f"the lock `{key}`"


def _left(
    ledger: Ledger, connection: Connection, row: Row[Any], holder: ProcessIdentity, me: ProcessIdentity
) -> int:
    """How long the lease is still valid, in microseconds; not positive if it has expired."""
    if row.boot_expires_at is not None and holder.shares_boot_clock(me):
        return int(row.boot_expires_at) - ledger.clock.since_boot()
    # Only one machine uses a SQLite file, so a holder of another boot ended when that machine restarted.
    if ledger.file is not None and holder.boot and me.boot and holder.boot != me.boot:
        return 0
    return int(row.expires_at) - ledger.now(connection)


def _advice(life: Life, pid: int, seconds_left: float) -> str:
    if life is Life.STOPPED:
        return (
            f"the process is stopped; continue it with `kill -CONT {pid}`, or end it with `kill -KILL {pid}`"
        )
    if life is Life.UNKNOWN:
        return f"wait for it to end; if it has already ended, its lease expires in {seconds_left:.0f} s"
    if seconds_left <= 0:
        return (
            f"it should have renewed its lease {-seconds_left:.0f} s ago; "
            f"wait, or end it with `kill -KILL {pid}`"
        )
    return "wait for it to end"


def leased_partitions(ledger: Ledger) -> dict[str, str]:
    """The partitions and locks whose lease has not expired, and their runs. Does not create a ledger."""
    if not ledger.exists():
        return {}
    with ledger.read() as connection:
        query = select(leases.c.partition_date, leases.c.run_id).where(
            leases.c.expires_at > ledger.now(connection)
        )
        return dict(connection.execute(query).tuples().all())


def renew_lease(ledger: Ledger, lease: Lease) -> bool:
    """Extends the lease; False if another run has taken it."""
    with ledger.write() as connection:
        changed = connection.execute(
            update(leases)
            .where(leases.c.partition_date == lease.partition_date, leases.c.token == lease.token)
            .values(**_expiry(ledger, connection))
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
    row = connection.execute(_HOLDER, {"date": lease.partition_date})
    return bool(row.scalar_one_or_none() == lease.token)


def require_held(connection: Connection, lease: Lease) -> None:
    """As :func:`is_held`. Raises :class:`LeaseLost` if another run has taken the lease."""
    if not is_held(connection, lease):
        raise lease_lost(lease)


_HOLDER: Final = select(leases.c.token).where(leases.c.partition_date == bindparam("date")).with_for_update()


def _mark_open_claims(connection: Connection, partition_date: str) -> int:
    return connection.execute(
        update(submissions)
        .where(submissions.c.partition_date == partition_date, submissions.c.state == State.CLAIMED)
        .values(state=State.UNCERTAIN, decision=None, error=_INTERRUPTED, updated_at=now())
    ).rowcount


def _expiry(ledger: Ledger, connection: Connection) -> dict[str, int]:
    """When a lease that is renewed now expires."""
    lifetime = _lifetime(ledger)
    return {
        "expires_at": ledger.now(connection) + lifetime,
        "boot_expires_at": ledger.clock.since_boot() + lifetime,
    }


def _sure_until(ledger: Ledger) -> tuple[int, int]:
    """Until when, by both clocks, a lease that is renewed after this call is certainly valid."""
    sure = int(_lifetime(ledger) * (1 - _MARGIN))
    return ledger.clock.now() + sure, ledger.clock.since_boot() + sure


def _lifetime(ledger: Ledger) -> int:
    """How long a lease is valid, in microseconds."""
    return int(ledger.lease_seconds * SECOND)
