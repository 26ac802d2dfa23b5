"""The last check before a call: does this run still hold its lease?

A suspended run (SIGSTOP, a closed laptop, a paused virtual machine) continues where it was when it wakes, and
another run may have its partition by then. So each upload passes the fence just before its last byte. The
kernel sends what it has by then.
"""

import asyncio

from kyc_pipeline.ledger.leases import HeldLease


class Fence:
    """Lets the uploads of one run pass while it holds its lease. Use it in one event loop."""

    def __init__(self, held: HeldLease) -> None:
        self._held = held
        self._asking = asyncio.Lock()
        self._asked = 0
        self._confirmed = 0

    async def confirm(self) -> None:
        """Raises :class:`LeaseLost` if another run has the lease, :class:`LedgerError` if nobody can tell.

        Asks the ledger only if this machine's clocks cannot tell. One query serves all uploads that were
        waiting before it.
        """
        if self._held.is_sure:
            return
        mine = self._asked + 1
        async with self._asking:
            if self._confirmed < mine:
                self._asked += 1
                asked = self._asked
                await asyncio.to_thread(self._held.confirm)
                self._confirmed = asked
