"""Verifies one partition: plans the work, takes the lease, sends, and writes the lake's table.

`dispatcher.py` explains why each call is paid only once, given the guarantees of `ledger/claims.py`, and
`shards.py` how several processes make the calls of a large day. This module claims nothing without a valid
credential and the partition's lease. It writes the table from the ledger however the run ends, even if it
could not start. An interrupt in the calling thread (Dagster's cancel, Ctrl-C) lets the calls in flight
finish, since they are paid for.

Before the first call it writes the partition with the footer `state=dispatching`: any of its submissions may
have been sent. At the end `state=complete` replaces it.
"""

import asyncio
import contextlib
import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from kyc_pipeline.deepxl.call_errors import AccessDenied, DeepXLError, Denied
from kyc_pipeline.deepxl.client import DeepXLClient
from kyc_pipeline.document_store import DocumentStore
from kyc_pipeline.errors import KycError, UsageError, plain_line
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import ResponsesState
from kyc_pipeline.landing.opening import open_landing
from kyc_pipeline.ledger.database import Ledger, WrongLedger
from kyc_pipeline.ledger.day_budget import DayBudget
from kyc_pipeline.ledger.identity import (
    LakeNote,
    bind,
    check_bond,
    check_outcomes,
    check_same,
    may_lack_calls,
)
from kyc_pipeline.ledger.leases import HeldLease, hold, mark_open_claims_uncertain
from kyc_pipeline.ledger.offload import recall
from kyc_pipeline.ledger.queries import read_spend
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.calling import calling
from kyc_pipeline.verify.control import RunControl
from kyc_pipeline.verify.dispatcher import Timing
from kyc_pipeline.verify.look_up_first import look_up_first
from kyc_pipeline.verify.messages import Task
from kyc_pipeline.verify.partition import (
    Action,
    Scan,
    Work,
    is_current,
    scan,
    withdrawn,
    work,
    write_responses,
)
from kyc_pipeline.verify.shard import Shard, shards_of
from kyc_pipeline.verify.shards import ShardLost, settle_shards
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import Progress, Stopped, Tally, VerifySummary, estimated_cost
from kyc_pipeline.vocabulary import Outcome

PROGRESS_SECONDS: Final = 0.5
_FORBIDDEN: Final = 403
_logger = logging.getLogger(__name__)


class LedgerConflict(KycError):
    """The ledger has some submissions under another date, with other content or without a row.

    The rest were verified.
    """


def _withdrawn_text(submission_id: str) -> str:
    return (
        f"submission {submission_id} was turned away, then withdrawn from the manifests, but DeepXL has a "
        "record of it: deliver it again, and the record is adopted without a call"
    )


def verify_partition(
    *,
    settings: Settings,
    lake: Lake,
    ledger: Ledger,
    date: str,
    run_id: str,
    stop: StopFlag,
    progress: Callable[[Progress], None] | None = None,
    budget: CallBudget | None = None,
    timing: Timing | None = None,
    planned: Scan | None = None,
    look_up_first: bool = False,
) -> VerifySummary:
    """Verifies what is left of partition `date` and replaces its table `verification_responses`.

    Works in its own thread and calls `progress` in the calling thread twice a second. An exception in the
    calling thread (KeyboardInterrupt, Dagster's interruption) drains the run and is raised again once
    everything is written; a second one abandons the calls in flight.

    With no call to make, or no budget left, it needs no credential and sends no request. `planned` is a scan
    made just before; without it the run makes its own. With `look_up_first` the run looks up every submission
    that it would send before it sends the first; it always does so for a day that a restored ledger may not
    know.

    Raises :class:`UsageError` if it needs a credential and has none, :class:`PartitionBusy`,
    :class:`LedgerConflict`, :class:`LedgerError` (:class:`WrongLedger` if this is not the lake's ledger),
    and :class:`PartitionMissing`. The :class:`DeepXLError` or :class:`ShardLost` that ended the run is the
    summary's `error`; the table is then written, too.
    """
    run = _Run(
        settings=settings,
        lake=lake,
        ledger=ledger,
        date=date,
        run_id=run_id,
        budget=budget or CallBudget(settings.deepxl_max_calls_per_run),
        day_budget=DayBudget(settings.deepxl_max_calls_per_day),
        timing=timing or Timing(),
        planned=planned,
        look_up_first=look_up_first,
    )
    with stop.watched(lambda: run.stop.now() if stop.immediate else run.stop.drain()):
        return run.in_thread(progress)


@dataclass
class _Run:
    """One run over one partition."""

    settings: Settings
    lake: Lake
    ledger: Ledger
    date: str
    run_id: str
    budget: CallBudget
    day_budget: DayBudget
    timing: Timing
    planned: Scan | None
    look_up_first: bool
    stop: StopFlag = field(default_factory=StopFlag)
    tally: Tally = field(default_factory=Tally)
    started: float = field(default_factory=time.monotonic)
    stopped: Stopped = Stopped.NONE
    error: DeepXLError | ShardLost | None = None
    calls_to_make: int = 0
    shards: Sequence[Shard] = ()
    withdrawn_on_record: Sequence[str] = ()

    # --- in the calling thread ------------------------------------------------------------------------

    def in_thread(self, progress: Callable[[Progress], None] | None) -> VerifySummary:
        outcome: list[VerifySummary | BaseException] = []
        done = threading.Event()

        def run_and_report() -> None:
            try:
                outcome.append(self.run())
            except BaseException as error:  # raised again in the calling thread
                outcome.append(error)
            finally:
                done.set()

        thread = threading.Thread(target=run_and_report, name=f"verify-{self.date}")
        thread.start()
        interruption: BaseException | None = None
        while not done.is_set():
            try:
                if not done.wait(PROGRESS_SECONDS) and progress is not None and interruption is None:
                    progress(self.progress())
            # Whatever interrupts this thread, the run must end in an orderly way: its calls are paid for.
            except BaseException as error:
                self.stop.escalate()
                interruption = interruption or error
        thread.join()
        result = outcome[0]
        if progress is not None and interruption is None:
            progress(self.progress())  # also of a run that failed: its calls are paid for
        if interruption is not None:
            if isinstance(result, BaseException):
                _logger.error("error while the interrupted run ended: %s", plain_line(result))
            raise interruption
        if isinstance(result, BaseException):
            raise result
        return result

    def progress(self) -> Progress:
        tally = self.tally
        return Progress(
            date=self.date,
            total=tally.to_settle,
            done=tally.settled,
            calls=tally.calls,
            retries=tally.retries,
            uncertain=tally.uncertain,
            billable_calls=tally.billable_calls,
            estimated_cost=estimated_cost(self.settings, tally.billable_calls),
            seconds=time.monotonic() - self.started,
            processes=max(1, len(self.shards)),
        )

    # --- in the run's own thread ----------------------------------------------------------------------

    def run(self) -> VerifySummary:
        check_bond(self.lake, self.ledger)
        known = self.ledger if self.ledger.exists() else None
        to_look_up = 0
        before = self.planned or scan(self.lake, known, self.date, self.settings.deepxl_uncertain)
        if known is not None:
            # Before the table is replaced: its outcomes may be known nowhere else.
            if before.outcomes[Outcome.NOT_ATTEMPTED]:
                check_outcomes(self.lake, known, [self.date])
            self.look_up_first |= may_lack_calls(known, self.date)
            to_look_up = len(withdrawn(self.lake, known, self.date))
        self.calls_to_make = before.to_send
        self.tally.to_settle = before.to_settle if self.settings.has_token else before.to_send
        self.shards = shards_of(before.to_settle, self.settings)
        is_spent = self.budget.is_used_up or self.day_budget.read(self.ledger).is_used_up
        to_send = 0 if is_spent else before.to_send
        to_look_up += before.actions[Action.LOOK_UP] + (before.to_send if self.look_up_first else 0)
        if not self.settings.has_token:
            to_look_up = 0
        if not to_send and not to_look_up:
            if before.to_send:
                self.stopped = Stopped.BUDGET if self.budget.is_used_up else Stopped.DAY_BUDGET
            return self.without_calls(before)
        try:
            # Before anything is claimed.
            self.settings.require_token()
            if to_send:
                self.documents.require_mounted()
            return asyncio.run(self.dispatch())
        except (UsageError, DeepXLError) as error:
            return self.after_error(before, error)

    def after_error(self, before: Scan, error: UsageError | DeepXLError) -> VerifySummary:
        """Writes every outcome. Raises `error` unless the summary has it; never raises one that follows."""
        if isinstance(error, DeepXLError):
            self.ended_by(error)
        try:
            summary = self.without_calls(before)
        except KycError:
            raise error from None
        if self.error is None:
            raise error
        return summary

    def without_calls(self, before: Scan) -> VerifySummary:
        """Writes every submission's outcome from the ledger, unless the table is current."""
        if not before.open_claims and is_current(self.lake, self.date, before):
            self.raise_conflict(before)
            return self.summary(before)
        with hold(self.ledger, self.date, self.run_id) as held:
            recall(self.lake, self.ledger, held.lease)
            after = self.write_table(ResponsesState.COMPLETE, held.confirm)
        self.raise_conflict(after)
        return self.summary(after)

    @property
    def documents(self) -> DocumentStore:
        return open_landing(self.settings.kyc_landing).documents

    async def dispatch(self) -> VerifySummary:
        client = DeepXLClient.of(self.settings)
        async with client:
            is_trusted = await self.check_access(client)
            bind(self.lake, self.ledger)
            with hold(self.ledger, self.date, self.run_id, self.stop.drain) as held:
                after, error = await self.dispatch_under(held, client, is_trusted)
        if error is None:
            self.raise_conflict(after)
        elif isinstance(error, (DeepXLError, ShardLost)):
            self.ended_by(error)
        else:
            raise error
        return self.summary(after)

    def ended_by(self, error: DeepXLError | ShardLost) -> None:
        self.error = error
        self.stopped = Stopped.ACCESS_DENIED if isinstance(error, Denied) else Stopped.ERROR

    @staticmethod
    async def check_access(client: DeepXLClient) -> bool:
        """Detects a wrong credential or address before anything is claimed.

        Returns whether DeepXL's history responded. An account without access to it (403) may still verify;
        the first call will tell.
        """
        try:
            return await client.check_access()
        except AccessDenied as error:
            if error.http_status != _FORBIDDEN:
                raise
            return False

    async def dispatch_under(
        self, held: HeldLease, client: DeepXLClient, is_trusted: bool
    ) -> tuple[Scan, Exception | None]:
        control = RunControl(self.stop)
        with control.watching():
            recall(self.lake, self.ledger, held.lease)
            self.write_table(ResponsesState.DISPATCHING, held.confirm)
            async with calling(
                held,
                settings=self.settings,
                lake=self.lake,
                client=client,
                control=control,
                budget=self.budget,
                day_budget=self.day_budget,
                tally=self.tally,
                timing=self.timing,
                is_trusted=is_trusted,
            ) as calls:
                if self.look_up_first:
                    await look_up_first(
                        self.work(),
                        client=client,
                        writer=calls.writer,
                        gate=calls.gate,
                        control=control,
                        tally=self.tally,
                        outgoing=calls.outgoing,
                        concurrency=self.settings.deepxl_max_concurrency,
                        waits=self.timing.look_ups,
                    )
                if len(self.shards) > 1 and not control.ending:
                    await self.dispatch_shards(held, control, is_trusted)
                else:
                    await calls.dispatcher.run(self.work())
                self.withdrawn_on_record = await calls.dispatcher.look_up_withdrawn(
                    withdrawn(self.lake, self.ledger, self.date)
                )
            self.check_ledger(held)
            LakeNote(self.lake, self.ledger).write()
            self.stopped = control.reason
            # All calls of this run have ended: a claim still open was abandoned.
            mark_open_claims_uncertain(self.ledger, held.lease)
            return self.write_table(ResponsesState.COMPLETE, held.confirm), control.error

    async def dispatch_shards(self, held: HeldLease, control: RunControl, is_trusted: bool) -> None:
        """Settles the work in a process per shard."""
        concurrency = self.settings.deepxl_max_concurrency
        before = read_spend(self.ledger, self.date, self.run_id)
        already = copy.copy(self.tally)
        with self.budget.lent() as budget:
            tasks = [
                Task(
                    shard,
                    self.settings.model_copy(update={"deepxl_max_concurrency": shard.share(concurrency)}),
                    self.lake,
                    self.ledger,
                    held.lease,
                    is_trusted,
                    self.timing,
                    budget,
                )
                for shard in self.shards
            ]
            generation, is_told = await settle_shards(tasks, control, self.stop, self.tally)
        if not is_told:  # the ledger knows what a lost process did, an open claim included
            spent = read_spend(self.ledger, self.date, self.run_id)
            self.tally.calls = already.calls + spent.calls - before.calls
            self.tally.retries = already.retries + spent.retries - before.retries
            self.tally.billable_calls = already.billable_calls + spent.billable_calls - before.billable_calls
        self.ledger.generation = max(self.ledger.generation, generation)
        self.day_budget.read(self.ledger)

    def work(self) -> Iterator[list[Work]]:
        return work(self.lake, self.ledger, self.date, self.settings.deepxl_uncertain)

    def check_ledger(self, held: HeldLease) -> None:
        """Raises if the lease was lost, or if another ledger took the place of the one that was opened."""
        try:
            held.check()
            check_same(self.ledger)
        except WrongLedger:
            if self.ledger.is_open_but_gone:
                # Only the open file knows this run's calls: the lake keeps them for a restore.
                with contextlib.suppress(KycError):
                    self.write_table(ResponsesState.DISPATCHING)
            raise

    def write_table(self, state: ResponsesState, confirm: Callable[[], None] = lambda: None) -> Scan:
        """Replaces the lake's partition with the ledger's present state. `recall` comes before the first."""
        policy = self.settings.deepxl_uncertain
        return write_responses(self.lake, self.ledger, self.date, state, policy, confirm)

    def raise_conflict(self, seen: Scan) -> None:
        lines = [*seen.conflicts, *map(_withdrawn_text, self.withdrawn_on_record)]
        if lines:
            more = seen.conflict_count + len(self.withdrawn_on_record) - 1
            raise LedgerConflict(lines[0] + (f" (and {more} more)" if more else ""))

    def summary(self, seen: Scan) -> VerifySummary:
        tally = self.tally
        return VerifySummary(
            date=self.date,
            outcomes=dict(seen.outcomes),
            calls_to_make=self.calls_to_make,
            calls=tally.calls,
            retries=tally.retries,
            lookups=tally.lookups,
            adopted=tally.adopted,
            billable_calls=tally.billable_calls,
            estimated_cost=estimated_cost(self.settings, tally.billable_calls),
            held=seen.held,
            stopped=self.stopped,
            error=self.error,
            why=str(self.day_budget) if self.stopped is Stopped.DAY_BUDGET else "",
        )
