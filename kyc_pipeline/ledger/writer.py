"""Group commit: one thread writes the ledger for all calls in flight.

A transaction and its flush to disk cost far more than one change. So changes that arrive during a commit go
into the next one, and commits start at least `_PACE_SECONDS` apart. A failed commit is retried for a while
(until there is disk space, a lock or a connection again), since the responses are paid for; until it
succeeds, no claim is won and no call is made. If the database rejects a change, the group is split and the
rest is written.
"""

import asyncio
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import ChangeRefused, InvariantBroken, Ledger, LedgerError, WrongLedger
from kyc_pipeline.ledger.day_budget import DayBudget
from kyc_pipeline.ledger.models import Adoption, Claim, ClaimResult, Discovery, Lease, Settlement

_MAX_GROUP: Final = 512
_MAX_CHARACTERS: Final = 16_000_000
"""Limit of response text in one transaction, to bound memory."""
_PACE_SECONDS: Final = 0.03
"""Minimum time between the starts of two commits, unless `_ENOUGH` changes are waiting."""
_ENOUGH: Final = 64
_RETRY_SECONDS: Final = 0.5


@dataclass(slots=True)
class _Pending:
    change: Claim | Settlement
    done: "asyncio.Future[bool]"

    @property
    def characters(self) -> int:
        change = self.change
        if isinstance(change, ClaimResult):
            return len(change.response or "") + len(change.body or "")
        return len(change.response or "") if isinstance(change, (Adoption, Discovery)) else 0


class GroupWriter:
    """Writes the claims and results of one run. Use it with `async with`, in one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        lease: Lease,
        *,
        patience_seconds: float,
        after_commit: Callable[[], None] = lambda: None,
        day_budget: DayBudget | None = None,
    ) -> None:
        self._ledger = ledger
        self._day_budget = day_budget
        self._after_commit = after_commit
        self._lease = lease
        self._patience_seconds = patience_seconds
        self._arrived: list[_Pending] = []
        self._waiting: list[_Pending] = []
        self._ended = False
        self._changed = threading.Condition()
        self._next_commit = 0.0
        self._thread = threading.Thread(target=self._run, name="ledger-writer")
        self._prefix = secrets.token_hex(10)
        self._claims = itertools.count()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hand_over()
        with self._changed:
            self._ended = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def new_claim(
        self,
        submission_id: str,
        content_sha256: str,
        *,
        resend: bool,
        by_policy: bool = False,
        sent: str | None = None,
    ) -> Claim:
        """A claim with a unique token: this writer's random prefix and a number."""
        token = f"{self._prefix}{next(self._claims):012x}"
        return Claim(submission_id, content_sha256, resend, token, by_policy, sent)

    async def claim(self, claim: Claim) -> bool:
        """Makes a claim durable; False if it was lost. Raises :class:`LedgerError`."""
        return await self._submit(claim)

    async def record(self, result: Settlement) -> None:
        """Makes a result durable. Raises :class:`LedgerError`."""
        await self._submit(result)

    async def _submit(self, change: Claim | Settlement) -> bool:
        done: asyncio.Future[bool] = self._loop.create_future()
        if not self._arrived:
            self._loop.call_soon(self._hand_over)
        self._arrived.append(_Pending(change, done))
        return await done

    def _hand_over(self) -> None:
        """Passes the changes of one event loop iteration to the writer thread."""
        with self._changed:
            is_first = not self._waiting
            self._waiting += self._arrived
            # One notification per group: notifying for each change would slow the event loop.
            if is_first or self._is_enough():
                self._changed.notify()
        self._arrived = []

    def _is_enough(self) -> bool:
        return self._ended or len(self._waiting) >= _ENOUGH

    def _run(self) -> None:
        while group := self._next_group():
            for part in _parts(group):
                self._write(part)

    def _write(self, part: list[_Pending]) -> None:
        try:
            won = self._commit([entry.change for entry in part])
            outcomes: list[bool | Exception] = [
                not isinstance(entry.change, Claim) or entry.change.token in won for entry in part
            ]
        # Unexpected errors too: a future that is never settled would hang the run.
        except Exception as error:
            is_outage = isinstance(error, LedgerError) and not isinstance(error, ChangeRefused)
            if len(part) > 1 and not is_outage:
                middle = len(part) // 2
                self._write(part[:middle])
                self._write(part[middle:])
                return
            outcomes = [error] * len(part)
        self._loop.call_soon_threadsafe(_settle, part, outcomes)

    def _next_group(self) -> list[_Pending]:
        """The waiting changes, up to a limit; empty once the writer has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            self._changed.wait_for(self._is_enough, self._next_commit - time.monotonic())
            group, self._waiting = self._waiting[:_MAX_GROUP], self._waiting[_MAX_GROUP:]
        self._next_commit = time.monotonic() + _PACE_SECONDS
        return group

    def _commit(self, changes: list[Claim | Settlement]) -> frozenset[str]:
        claims = [change for change in changes if isinstance(change, Claim)]
        results = [change for change in changes if not isinstance(change, Claim)]
        deadline: float | None = None
        may_repeat = len(changes) == 1
        while True:
            try:
                won = commit(self._ledger, self._lease, claims, results, self._day_budget)
            except (WrongLedger, InvariantBroken):
                raise  # trying again does not help
            except ChangeRefused:
                # Repeat a single change once: another host may just have written the same row.
                if not may_repeat:
                    raise
                may_repeat = False
            except LedgerError:
                # From the first failure on: this process may have been suspended during the commit.
                deadline = deadline or time.monotonic() + self._patience_seconds
                if time.monotonic() >= deadline:
                    raise
            else:
                self._after_commit()
                return won
            time.sleep(_RETRY_SECONDS)


def _parts(group: list[_Pending]) -> Iterator[list[_Pending]]:
    """The group in order, split so that the responses of a part stay within `_MAX_CHARACTERS`."""
    part: list[_Pending] = []
    characters = 0
    for entry in group:
        if part and characters + entry.characters > _MAX_CHARACTERS:
            yield part
            part, characters = [], 0
        part.append(entry)
        characters += entry.characters
    yield part


def _settle(group: list[_Pending], outcomes: list[bool | Exception]) -> None:
    for entry, outcome in zip(group, outcomes, strict=True):
        if entry.done.done():
            continue  # the waiting task was cancelled
        if isinstance(outcome, Exception):
            entry.done.set_exception(outcome)
        else:
            entry.done.set_result(outcome)
