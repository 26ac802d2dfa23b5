"""Sends a partition's submissions. Why each is paid only once:

1. Only `_call` sends, and only after `claim` returned True. Then the intent is on disk, the run holds the
   partition's lease, and the submission was in a state that allows sending.
2. Every result of a call goes to `record`, and is on disk before the submission counts as settled. A crash in
   between leaves the claim open, and an open claim becomes `uncertain`, never "not sent".
3. A submission is sent again only if the previous call was *certainly not processed* (the client's
   `NotProcessed`), or if it is uncertain, no look-up found it, and an operator or the policy allowed it.
4. A submission leaves `uncertain` only by such a decision, or because a look-up found its record.

So a submission can have two paid records only if the policy or an operator allowed the second call.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kyc_pipeline.deepxl.client import Answer, DeepXLClient, VerificationRequest
from kyc_pipeline.deepxl.echo import echo_mismatches, read_echo
from kyc_pipeline.deepxl.errors import (
    AccessDenied,
    ContractBroken,
    DeepXLError,
    DocumentUnavailable,
    LookupFailed,
    NotProcessed,
    Refused,
    UnexpectedRedirect,
)
from kyc_pipeline.documents import AcceptedDocument, DocumentFolder
from kyc_pipeline.ledger.models import Adoption, AttemptResult, Claim, Result, State
from kyc_pipeline.ledger.writer import GroupWriter
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.control import RunControl
from kyc_pipeline.verify.gate import BREAKER_WAITS, Gate, Health
from kyc_pipeline.verify.partition import Action, Work
from kyc_pipeline.verify.summary import Stopped, Tally


@dataclass(frozen=True, slots=True)
class Timing:
    """Waits in seconds; tests shorten them."""

    look_ups: Sequence[float] = (0.5, 2.0, 5.0, 10.0)
    """Before each look-up after a lost answer. How soon the history shows a record is not documented."""
    back_off: float = 0.5
    """Before the first retry; doubles, with jitter."""
    back_off_cap: float = 30.0
    breaker_waits: Sequence[float] = BREAKER_WAITS
    ledger_patience: float = 30.0
    """How long to retry a failing ledger before the run ends."""


_WORKERS_PER_CALL: Final = 1.5
"""Workers per call in flight: some record answers while others send."""
_TOO_MANY_REQUESTS: Final = 429

_MEANING: Final[dict[type[DeepXLError], tuple[State, AttemptResult, bool]]] = {
    NotProcessed: (State.FAILED, AttemptResult.NOT_PROCESSED, False),
    DocumentUnavailable: (State.FAILED, AttemptResult.NOT_PROCESSED, False),
    AccessDenied: (State.FAILED, AttemptResult.ACCESS_DENIED, False),
    Refused: (State.REFUSED, AttemptResult.REFUSED, False),
    ContractBroken: (State.QUARANTINED, AttemptResult.CONTRACT_BROKEN, True),
}
_MAYBE_PROCESSED: Final = (State.UNCERTAIN, AttemptResult.MAYBE_PROCESSED, True)
"""For every other error: `MaybeProcessed`, `UnexpectedRedirect` and unexpected ones."""


class Dispatcher:
    """Settles one partition's work with one client in one event loop."""

    def __init__(
        self,
        *,
        client: DeepXLClient,
        writer: GroupWriter,
        gate: Gate,
        control: RunControl,
        budget: CallBudget,
        tally: Tally,
        documents: Path,
        settings: Settings,
        timing: Timing,
    ) -> None:
        self._client = client
        self._writer = writer
        self._gate = gate
        self._control = control
        self._budget = budget
        self._tally = tally
        self._documents = DocumentFolder(documents)
        self._max_attempts = settings.deepxl_max_attempts
        self._max_concurrency = settings.deepxl_max_concurrency
        self._policy_resends = settings.deepxl_uncertain == "retry"
        self._timing = timing

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

    async def _work_through(self, source: "_Source") -> None:
        try:
            while not self._control.ending and (item := await source.next()) is not None:
                await self._settle(item)
                self._tally.settled += 1
        # Any error must end the run in an orderly way: the other calls in flight are paid for.
        except Exception as error:
            self._control.end(Stopped.ERROR, error)

    async def _settle(self, item: Work) -> None:
        resend = item.action is Action.RESEND
        if item.action is not Action.SEND and await self._look_up(item, self._waits_for(item)):
            return
        if item.action is Action.LOOK_UP:
            return
        for attempt in range(self._max_attempts):
            if attempt:
                await self._control.sleep(self._back_off(attempt))
            error = await self._call(item, resend=resend, is_retry=attempt > 0)
            if error is None or isinstance(error, DocumentUnavailable):
                return
            if isinstance(error, NotProcessed):
                continue
            if _meaning(error) is not _MAYBE_PROCESSED:
                return
            self._tally.uncertain += 1
            if await self._look_up(item, self._timing.look_ups) or not self._policy_resends:
                return
            resend = True

    async def _call(self, item: Work, *, resend: bool, is_retry: bool) -> DeepXLError | None:
        """Claims, sends and records once. Returns the error; None also if nothing was sent."""
        error: DeepXLError | None = None
        async with self._gate.passage() as passage:
            if self._control.ending or not self._take_from_budget():
                return None
            claim = self._writer.new_claim(item.submission_id, item.row["content_sha256"], resend=resend)
            if not await self._claim(claim):
                return None
            try:
                self._check_not_halted()
                self._tally.calls += 1
                self._tally.retries += is_retry
                answer = await self._client.verify(self._request(item))
                result = self._completed(item, claim, answer)
            except DeepXLError as failure:
                error = failure
                result = _failed(claim, failure, was_uncertain=resend)
            passage.health = _health(error)
            if isinstance(error, NotProcessed) and error.retry_after:
                await self._gate.pause(error.retry_after)
        # End the run before the next `await`, so that no other call can start first.
        if error is not None and error.stops_run:
            denied = isinstance(error, AccessDenied)
            self._control.end(Stopped.ACCESS_DENIED if denied else Stopped.ERROR, error)
        elif self._gate.breaker.given_up:
            self._control.end(Stopped.CIRCUIT_OPEN)
        await self._writer.record(result)
        self._tally.billable_calls += result.billable
        if result.latency_ms is not None and error is None:
            self._tally.latencies.append(result.latency_ms)
        return error

    def _check_not_halted(self) -> None:
        """Raises if the run must stop, or lost its lease, while the claim was being written."""
        if self._control.halted:
            self._budget.give_back()
            raise NotProcessed("the run ended before the call was sent")

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
        return won

    async def _look_up(self, item: Work, waits: Sequence[float]) -> bool:
        """Looks for a record of the submission after each of `waits`; adopts the first record found."""
        for wait in waits:
            await self._control.sleep(wait)
            await self._gate.permit()
            self._tally.lookups += 1
            try:
                found = await self._client.find(item.submission_id)
            except (AccessDenied, UnexpectedRedirect) as error:
                self._control.end(Stopped.ACCESS_DENIED, error)
                return False
            except LookupFailed:
                found = []  # a failed look-up is no proof that there is none: hold
            if found:
                await self._writer.record(self._adoption(item, found))
                self._tally.adopted += 1
                return True
            if self._control.ending:
                return False
        return False

    def _waits_for(self, item: Work) -> Sequence[float]:
        """One immediate look-up if the history has had time to show a held submission; else all of them."""
        age = time.time() - item.updated_at / 1_000_000
        if item.action is Action.LOOK_UP and age > sum(self._timing.look_ups):
            return (0.0,)
        return self._timing.look_ups

    def _back_off(self, attempt: int) -> float:
        seconds = min(self._timing.back_off_cap, self._timing.back_off * 2.0 ** (attempt - 1))
        return seconds * random.uniform(0.5, 1.0)

    def _request(self, item: Work) -> VerificationRequest:
        row = item.row
        id_file, selfie_file = (
            AcceptedDocument(
                self._documents,
                row[f"{side}_file"],
                size=row[f"{side}_size"],
                sha256=row[f"{side}_sha256"],
                content_type=row[f"{side}_content_type"],
            )
            for side in ("id", "selfie")
        )
        return VerificationRequest(item.submission_id, id_file, selfie_file, tags=dict(row["tags"]))

    def _completed(self, item: Work, claim: Claim, answer: Answer) -> Result:
        return Result(
            claim,
            State.COMPLETED,
            AttemptResult.ANSWERED,
            billable=True,
            http_status=answer.http_status,
            requested_at=answer.requested_at,
            responded_at=answer.responded_at,
            latency_ms=answer.latency_ms,
            response=answer.text,
            error=_anomalies(item, answer),
        )

    def _adoption(self, item: Work, found: Sequence[Answer]) -> Adoption:
        first = min(found, key=lambda answer: answer.verification_id)
        anomalies = _anomalies(item, first)
        notes = [anomalies] if anomalies else []
        if len(found) > 1:
            notes.append(f"the history has {len(found)} records of this submission: adopted the first")
        return Adoption(
            item.submission_id, first.http_status, first.responded_at, first.text, "; ".join(notes) or None
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


def _failed(claim: Claim, error: DeepXLError, *, was_uncertain: bool) -> Result:
    state, result, billable = _meaning(error)
    if state is State.FAILED and was_uncertain:
        state = State.UNCERTAIN  # this call was not processed, but an earlier one may have been
    broken = isinstance(error, ContractBroken)
    return Result(
        claim,
        state,
        result,
        billable,
        http_status=error.http_status,
        requested_at=error.requested_at,
        latency_ms=error.latency_ms if error.http_status is not None else None,
        response=error.body if broken else None,
        body=None if broken else error.body,
        error=str(error),
    )


def _health(error: DeepXLError | None) -> Health | None:
    if error is None or isinstance(error, (Refused, ContractBroken)):
        return Health.WELL
    if isinstance(error, (DocumentUnavailable, AccessDenied, UnexpectedRedirect)):
        return None
    return Health.THROTTLED if error.http_status == _TOO_MANY_REQUESTS else Health.ILL


def _anomalies(item: Work, answer: Answer) -> str | None:
    mismatches = echo_mismatches(
        read_echo(answer.text),
        id_size=item.row["id_size"],
        selfie_size=item.row["selfie_size"],
        tags=dict(item.row["tags"]),
    )
    wrong = [name for _, name in mismatches if name is not None]
    return f"the answer differs from what was sent: {', '.join(wrong)}" if wrong else None
