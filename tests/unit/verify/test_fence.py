"""The fence: one question to the ledger for many uploads, and nobody passes on another's luck."""

import asyncio
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from kyc_pipeline.ledger.database import LEASE_SECONDS, Ledger
from kyc_pipeline.ledger.leases import HeldLease, LeaseLost
from kyc_pipeline.ledger.schema import leases
from kyc_pipeline.ledger.times import Clock
from kyc_pipeline.verify.fence import Fence

UPLOADS = 20


class CountingLease(HeldLease):
    """Counts the questions to the ledger. The first of them is answered once all uploads wait."""

    questions = 0
    all_wait = threading.Event()

    def confirm(self) -> None:
        CountingLease.questions += 1
        self.all_wait.wait()
        super().confirm()


async def results(held: HeldLease) -> list[BaseException | None]:
    fence = Fence(held)
    CountingLease.all_wait.clear()
    uploads = [asyncio.ensure_future(fence.confirm()) for _ in range(UPLOADS)]
    asyncio.get_running_loop().call_soon(CountingLease.all_wait.set)  # after the first step of each upload
    return await asyncio.gather(*uploads, return_exceptions=True)


def test_uploads_that_wait_share_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingLease, "questions", 0)
    time = 1_000_000
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock=Clock(lambda: time, lambda: time)) as ledger:
        held = CountingLease.acquire(ledger, "2024-09-01", "run")
        assert isinstance(held, CountingLease)
        assert asyncio.run(results(held)) == [None] * UPLOADS
        assert CountingLease.questions == 0  # the clock tells
        time += int(LEASE_SECONDS * 1_000_000)
        assert asyncio.run(results(held)) == [None] * UPLOADS
        # The first asks at once; those that come meanwhile need a later question, and share it.
        assert CountingLease.questions == 1 + 1
        with ledger.write() as connection:
            connection.execute(sa.update(leases).values(token="another's"))
        time += int(LEASE_SECONDS * 1_000_000)
        assert {type(result) for result in asyncio.run(results(held))} == {LeaseLost}
