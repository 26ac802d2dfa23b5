"""Sends a partition's submissions. Why each is paid only once:

1. Only `_call` sends, and only after `claim` returned True. Then the intent is on disk, the run holds the
   partition's lease, and the submission was in a state that allows sending.
2. Every result of a call goes to `record`, and is on disk before the submission counts as settled. A crash in
   between leaves the claim open, and an open claim becomes `uncertain`, never "not sent".
3. A response counts only if it came after the whole request and is about this submission.
4. A submission is sent again if the previous call was *surely not processed* (`NotProcessed`). If the server
   asked for it again (`TurnedAway`, `Denied`), a look-up must first show that there is no record. If the call
   is in doubt, an operator or the policy must allow it as well.
5. A submission leaves `uncertain` only by such a decision and a sound response, or because a look-up found a
   record that can be this call's.
6. A run that lost its lease completes no request: `fence.py`.

So a submission can have two paid records only if the policy or an operator allowed the second call.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from kyc_pipeline.deepxl.call_errors import (
    AccessDenied,
    ContractBroken,
    DeepXLError,
    Denied,
    DocumentUnavailable,
    LookupFailed,
    MaybeProcessed,
    NotProcessed,
    Refused,
    Sent,
    TurnedAway,
    UnexpectedRedirect,
    WrongAddress,
)
from kyc_pipeline.deepxl.client import DeepXLClient, VerificationRequest, VerificationResponse
from kyc_pipeline.deepxl.echo import Echo, contradictions, read_echo
from kyc_pipeline.lake.sent import SentContent
from kyc_pipeline.ledger.day_budget import DayBudget
from kyc_pipeline.ledger.models import Adoption, AttemptResult, Claim, ClaimResult, Judgement, State
from kyc_pipeline.ledger.times import SECOND
from kyc_pipeline.ledger.writer import GroupWriter
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.blame import Blame
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.control import RunControl
from kyc_pipeline.verify.fence import Fence
from kyc_pipeline.verify.gate import BREAKER_WAITS, Gate, Health
from kyc_pipeline.verify.outgoing import Outgoing, Package
from kyc_pipeline.verify.partition import STANDINGS, Action, Standing, Work
from kyc_pipeline.verify.summary import Stopped, Tally


@dataclass(frozen=True, slots=True)
class Timing:
    """Waits in seconds; tests shorten them."""

    look_ups: Sequence[float] = (0.5, 2.0, 5.0, 10.0)
    """Before each look-up after a lost response. How soon the history shows a record is not documented."""
    back_off: float = 0.5
    """Before the first retry; doubles, with jitter."""
    back_off_cap: float = 30.0
    breaker_waits: Sequence[float] = BREAKER_WAITS
    ledger_patience: float = 30.0
    """How long to retry a failing ledger before the run ends."""


_WORKERS_PER_CALL: Final = 1.5
"""Workers per call in flight: some record responses while others send."""
_TOO_MANY_REQUESTS: Final = 429

_MEANING: Final[dict[type[DeepXLError], tuple[State, AttemptResult, bool]]] = {
    NotProcessed: (State.FAILED, AttemptResult.NOT_PROCESSED, False),
    DocumentUnavailable: (State.FAILED, AttemptResult.NOT_PROCESSED, False),
    TurnedAway: (State.TURNED_AWAY, AttemptResult.TURNED_AWAY, False),
    AccessDenied: (State.TURNED_AWAY, AttemptResult.ACCESS_DENIED, False),
    WrongAddress: (State.TURNED_AWAY, AttemptResult.ACCESS_DENIED, False),
    Refused: (State.REFUSED, AttemptResult.REFUSED, False),
    ContractBroken: (State.QUARANTINED, AttemptResult.CONTRACT_BROKEN, True),
}
_MAYBE_PROCESSED: Final = (State.UNCERTAIN, AttemptResult.MAYBE_PROCESSED, True)
"""For every other error: `MaybeProcessed`, `UnexpectedRedirect` and unexpected ones."""


class Sought(Enum):
    """What a look-up says."""

    FOUND = "found"
    """The submission's record, which is adopted."""
    NONE = "none"
    """There is surely no record of it."""
    STRANGE = "strange"
    """Only records that carry its tag but cannot be this call's."""
    UNKNOWN = "unknown"
    """The history could not tell: that proves nothing."""
    ENDED = "ended"
    """The run ended before the history had time to show a record."""


class Dispatcher:
    """Settles one partition's work with one client in one event loop."""

    def __init__(
        self,
        *,
        client: DeepXLClient,
        writer: GroupWriter,
        fence: Fence,
        gate: Gate,
        control: RunControl,
        budget: CallBudget,
        day_budget: DayBudget,
        tally: Tally,
        outgoing: Outgoing,
        settings: Settings,
        timing: Timing,
        is_trusted: bool,
        date: str,
    ) -> None:
        self._client = client
        self._writer = writer
        self._fence = fence
        self._gate = gate
        self._control = control
        self._budget = budget
        self._day_budget = day_budget
        self._tally = tally
        self._outgoing = outgoing
        self._max_attempts = settings.deepxl_max_attempts
        self._max_concurrency = settings.deepxl_max_concurrency
        self._policy_resends = settings.deepxl_uncertain == "retry"
        self._timing = timing
        self._blame = Blame(gate.concurrency, is_trusted)
        self._date = date

    async def run(self, batches: Iterator[list[Work]]) -> None:
        """Settles everything in `batches`, or ends early; the control then has the reason."""
        source = _Source(batches)
        workers = [
            asyncio.create_task(self._work_through(source))
            for _ in range(int(self._max_concurrency * _WORKERS_PER_CALL) + 1)
        ]

        def cancel_workers() -> None:
            for worker in workers:
                worker.cancel()

        self._control.on_immediate = cancel_workers
        # A cancelled worker leaves its claim open; the claim becomes uncertain when the run ends.
        await asyncio.gather(*workers, return_exceptions=True)
        await self._judge_denials()

    async def look_up_withdrawn(self, items: Sequence[Work]) -> list[str]:
        """Looks up submissions that were turned away and then withdrawn; returns the ids of those on record.

        Such a record has no row to be compared with, so it is not adopted. Those without one were surely not
        processed.
        """
        found: list[str] = []

        async def settle(item: Work) -> None:
            sought = await self._look_up(item, self._timing.look_ups)
            if sought is Sought.STRANGE:
                found.append(item.submission_id)
                why = "withdrawn after it was turned away, but DeepXL has a record of it"
                await self._writer.record(self._judgement(item, State.TURNED_AWAY, why))
            elif sought is Sought.NONE:
                why = "withdrawn after it was turned away; DeepXL has no record of it"
                await self._writer.record(self._judgement(item, State.FAILED, why))

        try:
            for start in range(0, len(items), self._max_concurrency):
                if not self._control.ending:
                    await asyncio.gather(*map(settle, items[start : start + self._max_concurrency]))
        except Exception as error:  # the outcomes of the others must still be written
            self._control.end(Stopped.ERROR, error)
        return sorted(found)

    async def _work_through(self, source: "_Source") -> None:
        try:
            while not self._control.ending and (item := await source.next()) is not None:
                await self._settle(item)
                self._tally.settled += 1
        # Any error must end the run in an orderly way: the other calls in flight are paid for.
        except Exception as error:
            self._control.end(Stopped.ERROR, error)

    async def _settle(self, item: Work) -> None:
        if item.action is not Action.SEND:
            sought = await self._look_up(item, self._waits_for(item))
            if item.action is Action.LOOK_UP or not self._may_be_sent(item, sought):
                await self._hold(item, sought)
                return
        for attempt in range(self._max_attempts):
            if attempt:
                await self._control.sleep(self._back_off(attempt))
            error = await self._call(item, is_retry=attempt > 0)
            if isinstance(error, NotProcessed) and not isinstance(error, DocumentUnavailable):
                continue
            if not isinstance(error, MaybeProcessed | ContractBroken):
                return
            in_doubt = item.standing is Standing.IN_DOUBT
            self._tally.uncertain += in_doubt
            sought = await self._look_up(item, self._timing.look_ups)
            self._tally.uncertain -= in_doubt and sought is Sought.FOUND
            if _meaning(error)[0] is State.QUARANTINED:
                return
            if not self._may_be_sent(item, sought):
                await self._hold(item, sought)
                return

    def _may_be_sent(self, item: Work, sought: Sought) -> bool:
        """Whether it may be sent again after this look-up."""
        allowed = {
            Standing.CLEAR: (Sought.NONE,),
            Standing.TURNED_AWAY: (Sought.NONE,),
            Standing.DECIDED: (Sought.NONE, Sought.STRANGE),
            Standing.IN_DOUBT: (Sought.NONE,) if self._policy_resends else (),
        }
        return sought in allowed[item.standing]

    async def _hold(self, item: Work, sought: Sought) -> None:
        """Records why a submission is held: its look-up could not tell, or found a strange record."""
        why = {
            Sought.UNKNOWN: "turned away, and a look-up could not tell whether it was processed",
            Sought.STRANGE: "the history has a record of this id that cannot be this call's",
        }.get(sought)
        is_news = item.standing is Standing.TURNED_AWAY or (
            sought is Sought.STRANGE and item.action is not Action.LOOK_UP
        )
        if why is not None and is_news:
            await self._writer.record(self._judgement(item, State.UNCERTAIN, why))

    async def _call(self, item: Work, *, is_retry: bool) -> DeepXLError | None:
        """Claims, sends and records once. Returns the error; None also if nothing was sent."""
        package = await self._outgoing.package(item.row)
        async with self._gate.passage() as passage:
            if self._control.ending or not self._take_from_budget():
                return None
            claim = self._writer.new_claim(
                item.submission_id,
                item.row["content_sha256"],
                resend=item.standing is not Standing.CLEAR,
                by_policy=item.standing is Standing.IN_DOUBT,
                sent=package.sent.text(),
            )
            item.first_sent = item.first_sent or datetime.now(UTC)
            if not await self._claim(claim):
                return None
            if item.standing is Standing.IN_DOUBT:
                item.standing = Standing.DECIDED  # by the policy, on record now
            item.sending(package.sent)
            result, error = await self._counted(item, package, claim, is_retry=is_retry)
            if error is None:
                self._blame.responded()
            passage.health = _health(error)
            ends = self._ends(item, error, passage.started)
            if error is not None and error.retry_after and isinstance(error, NotProcessed | TurnedAway):
                await self._gate.pause(error.retry_after)
        # End the run before the next `await`, so that no other call can start first.
        if ends is not None:
            self._control.end(Stopped.ACCESS_DENIED if isinstance(ends, Denied) else Stopped.ERROR, ends)
        elif self._gate.breaker.given_up:
            self._control.end(Stopped.CIRCUIT_OPEN)
        await self._writer.record(result)
        self._tally.billable_calls += result.billable
        if item.standing is not Standing.DECIDED or result.result is AttemptResult.MAYBE_PROCESSED:
            item.standing = STANDINGS.get(result.state, item.standing)
        return error

    async def _counted(
        self, item: Work, package: Package, claim: Claim, *, is_retry: bool
    ) -> tuple[ClaimResult, DeepXLError | None]:
        """As `_send`. It counts as a call, unless not a byte left."""
        self._tally.calls += 1
        self._tally.retries += item.was_sent
        result, error = await self._send(item, package, claim, is_retry=is_retry)
        if result.result is AttemptResult.NOT_SENT:
            self._budget.give_back()
            self._tally.calls -= 1
            self._tally.retries -= item.was_sent
        else:
            item.was_sent = True
        return result, error

    async def _send(
        self, item: Work, package: Package, claim: Claim, *, is_retry: bool
    ) -> tuple[ClaimResult, DeepXLError | None]:
        """Sends once. Returns what to record, and the error unless there is a sound response."""
        try:
            self._check_not_halted()
            # A retry uses a new connection, where no response to an earlier request can arrive.
            request = VerificationRequest(
                item.submission_id, package.id_file, package.selfie_file, package.tags
            )
            response = await self._client.verify(request, self._fence.confirm, fresh=is_retry)
            wrong = self._contradictions(item, response.echo)
            if not wrong:
                return self._completed(claim, response), None
            error: DeepXLError = _in_doubt(
                response, f"the response is not about this submission: {', '.join(wrong)}", item
            )
        except ContractBroken as broken:
            if not self._contradictions(item, read_echo(broken.text)):
                return _failed(claim, broken, item.standing), broken
            error = _in_doubt(broken, f"{broken.http_status}, but not with a DeepXL response about it", item)
        except DeepXLError as failure:
            return _failed(claim, failure, item.standing), failure
        self._client.distrust_connections()
        return _failed(claim, error, item.standing), error

    def _ends(self, item: Work, error: DeepXLError | None, started: float) -> DeepXLError | None:
        """The error that ends the run: this one, or one for too many of its kind."""
        if isinstance(error, Denied):
            return error if self._blame.denied(item, error, started, time.monotonic()) else None
        if isinstance(error, Refused | ContractBroken):
            return self._blame.final(error)
        return error if error is not None and error.stops_run else None

    async def _judge_denials(self) -> None:
        """Denials are their submissions' fault if others succeeded, and the run's if none did."""
        denials = self._blame.denials
        if not denials or self._control.ending:
            return
        if self._blame.has_responses:
            for start in range(0, len(denials), self._max_concurrency):
                some = denials[start : start + self._max_concurrency]
                await asyncio.gather(*(self._judge(item, error) for item, error in some))
        else:
            self._control.end(Stopped.ACCESS_DENIED, denials[0][1])

    async def _judge(self, item: Work, error: Denied) -> None:
        """Refuses a submission, unless the history has a record of it or cannot tell."""
        sought = await self._look_up(item, self._timing.look_ups)
        if sought is Sought.NONE:
            why = f"{error}: others succeeded"
            await self._writer.record(self._judgement(item, State.REFUSED, why))
        else:
            await self._hold(item, sought)

    def _judgement(self, item: Work, state: State, why: str) -> Judgement:
        return Judgement(item.submission_id, self._date, item.row["content_sha256"], state, why)

    def _contradictions(self, item: Work, echo: Echo, *, exactly: bool = False) -> list[str]:
        """Why a response is not about the newest call or, with `exactly`, why a record is about no call."""
        candidates = item.sent if exactly else item.sent[-1:]
        return min((self._compared(item, sent, echo, exactly=exactly) for sent in candidates), key=len)

    def _compared(self, item: Work, sent: SentContent, echo: Echo, *, exactly: bool) -> list[str]:
        now = datetime.now(UTC)
        # A first attempt that lies ahead was timed by a wrong clock: no response would count until then.
        since = min(item.first_sent or now, now)
        return contradictions(
            echo,
            item.submission_id,
            **sent.echoed(item.row),
            since=since,
            until=now,
            exactly=exactly,
        )

    def _check_not_halted(self) -> None:
        """Raises if the run must stop, or lost its lease, while the claim was being written."""
        if self._control.halted:
            error = NotProcessed("the run ended before the call was sent")
            error.sent = Sent.NOTHING
            raise error

    def _take_from_budget(self) -> bool:
        if not self._budget.take():
            self._control.end(Stopped.BUDGET)
            return False
        return True

    async def _claim(self, claim: Claim) -> bool:
        won = False
        try:
            won = await self._writer.claim(claim)
        finally:
            if not won:
                self._budget.give_back()
        if not won and self._day_budget.is_used_up:
            self._control.end(Stopped.DAY_BUDGET)
        return won

    async def _look_up(self, item: Work, waits: Sequence[float]) -> Sought:
        """Looks for a record of the submission after each of `waits`; adopts the first that can be its own.

        Only the last look-up can show that there is none.
        """
        sought = Sought.UNKNOWN
        for wait in waits:
            await self._control.sleep(wait)
            await self._gate.permit()
            self._tally.lookups += 1
            try:
                found = await self._client.find(item.submission_id)
            except (AccessDenied, UnexpectedRedirect) as error:
                self._control.end(Stopped.ACCESS_DENIED, error)
                return Sought.ENDED
            except LookupFailed:
                sought = Sought.UNKNOWN
            else:
                ours = [
                    response
                    for response in found
                    if not item.is_changed and not self._contradictions(item, response.echo, exactly=True)
                ]
                if ours:
                    await self._writer.record(self._adoption(item, ours))
                    self._tally.adopted += 1
                    return Sought.FOUND
                sought = Sought.STRANGE if found else Sought.NONE
            if self._control.ending:
                return Sought.ENDED
        return sought

    def _waits_for(self, item: Work) -> Sequence[float]:
        """One immediate look-up if the history has had time to show a held submission; else all of them."""
        age = time.time() - item.updated_at / SECOND
        if item.action is Action.LOOK_UP and age > sum(self._timing.look_ups):
            return (0.0,)
        return self._timing.look_ups

    def _back_off(self, attempt: int) -> float:
        seconds = min(self._timing.back_off_cap, self._timing.back_off * 2.0 ** (attempt - 1))
        return seconds * random.uniform(0.5, 1.0)

    @staticmethod
    def _completed(claim: Claim, response: VerificationResponse) -> ClaimResult:
        return ClaimResult(
            claim,
            State.COMPLETED,
            AttemptResult.RESPONDED,
            billable=True,
            http_status=response.http_status,
            requested_at=response.requested_at,
            responded_at=response.responded_at,
            latency_ms=response.latency_ms,
            response=response.text,
        )

    def _adoption(self, item: Work, found: Sequence[VerificationResponse]) -> Adoption:
        first = min(found, key=lambda response: response.verification_id)
        sent = min(item.sent, key=lambda each: len(self._compared(item, each, first.echo, exactly=True)))
        several = f"the history has {len(found)} records of this submission: adopted the first"
        return Adoption(
            item.submission_id,
            self._date,
            item.row["content_sha256"],
            first.http_status,
            first.responded_at,
            first.text,
            several if len(found) > 1 else None,
            sent.text(),
        )


class _Source:
    """Hands out work items to many workers; reads the next batch in a thread."""

    def __init__(self, batches: Iterator[list[Work]]) -> None:
        self._batches = batches
        self._items: deque[Work] = deque()
        self._reading = asyncio.Lock()

    async def next(self) -> Work | None:
        """The next item; None at the end."""
        async with self._reading:
            while not self._items:
                batch = await asyncio.to_thread(next, self._batches, None)
                if batch is None:
                    return None
                self._items.extend(batch)
            return self._items.popleft()


def _meaning(error: DeepXLError) -> tuple[State, AttemptResult, bool]:
    return _MEANING.get(type(error), _MAYBE_PROCESSED)


def _failed(claim: Claim, error: DeepXLError, standing: Standing) -> ClaimResult:
    state, result, billable = _meaning(error)
    if error.sent is Sent.NOTHING:
        result = AttemptResult.NOT_SENT
    if state is State.TURNED_AWAY and error.sent is not Sent.WHOLE:
        state = State.FAILED
    if state is State.FAILED and standing is Standing.TURNED_AWAY:
        state = State.TURNED_AWAY  # this call was not processed, but the one before may have been
    if state in (State.FAILED, State.TURNED_AWAY) and standing is Standing.DECIDED:
        state = State.UNCERTAIN
    return ClaimResult(
        claim,
        state,
        result,
        billable,
        http_status=error.http_status,
        requested_at=error.requested_at,
        latency_ms=error.latency_ms if error.http_status is not None else None,
        response=error.body if state is State.QUARANTINED else None,
        body=error.body,
        error=str(error),
    )


def _in_doubt(response: VerificationResponse | ContractBroken, why: str, item: Work) -> MaybeProcessed:
    """The error in place of a response that does not count."""
    error = MaybeProcessed(
        f"submission {item.submission_id}: {why}", http_status=response.http_status, body=response.text
    )
    error.requested_at, error.latency_ms = response.requested_at, response.latency_ms
    return error


def _health(error: DeepXLError | None) -> Health | None:
    if error is None or isinstance(error, (Refused, ContractBroken)):
        return Health.WELL
    if isinstance(error, (DocumentUnavailable, Denied, UnexpectedRedirect)):
        return None
    return Health.THROTTLED if error.http_status == _TOO_MANY_REQUESTS else Health.ILL
