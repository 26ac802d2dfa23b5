"""Puts together what makes the calls of a day, or of a shard of it, under a lease."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from kyc_pipeline.deepxl.client import DeepXLClient
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.landing.opening import open_landing
from kyc_pipeline.ledger.day_budget import DayBudget
from kyc_pipeline.ledger.identity import LakeNote
from kyc_pipeline.ledger.leases import HeldLease
from kyc_pipeline.ledger.writer import GroupWriter
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.control import RunControl
from kyc_pipeline.verify.dispatcher import Dispatcher, Timing
from kyc_pipeline.verify.fence import Fence
from kyc_pipeline.verify.gate import Gate
from kyc_pipeline.verify.outgoing import Outgoing
from kyc_pipeline.verify.rate_limit import shared_limiter
from kyc_pipeline.verify.summary import Tally


@dataclass(frozen=True, slots=True)
class Calling:
    """The dispatcher, and the parts that a look-up before it needs."""

    dispatcher: Dispatcher
    writer: GroupWriter
    gate: Gate
    outgoing: Outgoing


@contextlib.asynccontextmanager
async def calling(
    held: HeldLease,
    *,
    settings: Settings,
    lake: Lake,
    client: DeepXLClient,
    control: RunControl,
    budget: CallBudget,
    day_budget: DayBudget,
    tally: Tally,
    timing: Timing,
    is_trusted: bool,
) -> AsyncIterator[Calling]:
    """Yields what makes the calls; when the block ends, everything is in the ledger."""
    note = LakeNote(lake, held.ledger)
    gate = Gate(
        max_concurrency=settings.deepxl_max_concurrency,
        limiter=shared_limiter(settings, held.ledger),
        sleep=control.sleep,
        breaker_waits=timing.breaker_waits,
    )
    outgoing = Outgoing(open_landing(settings.kyc_landing).documents, settings)
    async with GroupWriter(
        held.ledger,
        held.lease,
        patience_seconds=timing.ledger_patience,
        after_commit=note,
        day_budget=day_budget,
    ) as writer:
        dispatcher = Dispatcher(
            client=client,
            writer=writer,
            fence=Fence(held),
            gate=gate,
            control=control,
            budget=budget,
            day_budget=day_budget,
            tally=tally,
            outgoing=outgoing,
            settings=settings,
            timing=timing,
            is_trusted=is_trusted,
            date=held.lease.partition_date,
        )
        yield Calling(dispatcher, writer, gate, outgoing)
