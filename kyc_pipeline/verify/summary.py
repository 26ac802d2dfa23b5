"""The figures of a run, in progress and at its end."""

import dataclasses
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.errors import KycError
from kyc_pipeline.settings import Settings
from kyc_pipeline.vocabulary import LEFT_FOR_LATER, Outcome
from kyc_pipeline.wording import Money, plural


class Stopped(StrEnum):
    """Why a run ended early."""

    NONE = "none"
    BUDGET = "budget"
    DAY_BUDGET = "day_budget"
    """A run on a later day continues."""
    CANCELLED = "cancelled"
    ACCESS_DENIED = "access_denied"
    CIRCUIT_OPEN = "circuit_open"
    ERROR = "error"


CIRCUIT_IS_OPEN: Final = "too many calls in a row failed: DeepXL, or the way to it, is out of order"
"""The meaning of an open circuit."""


@dataclass(slots=True)
class Tally:
    """The running totals of one run. Only the event loop writes them; any thread may read them."""

    to_settle: int = 0
    settled: int = 0
    calls: int = 0
    retries: int = 0
    lookups: int = 0
    adopted: int = 0
    billable_calls: int = 0
    uncertain: int = 0
    """Submissions still uncertain after a call of this run."""

    def advance(self, before: "Tally", after: "Tally") -> None:
        """Adds what a part of the run has done between two of its tallies."""
        for each in dataclasses.fields(Tally):
            more = getattr(after, each.name) - getattr(before, each.name)
            setattr(self, each.name, getattr(self, each.name) + more)


@dataclass(frozen=True, slots=True)
class Progress:
    """A snapshot of a run in progress."""

    date: str
    total: int
    """Submissions for this run to settle."""
    done: int
    calls: int
    retries: int
    uncertain: int
    billable_calls: int
    estimated_cost: Money | None
    seconds: float
    processes: int = 1
    """Processes that make the calls."""

    @property
    def per_second(self) -> float:
        """Submissions settled per second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the pace so far; None before the first submission is settled."""
        return (self.total - self.done) / self.per_second if self.done else None

    def __str__(self) -> str:
        left = self.seconds_left if self.done < self.total else None
        return (
            f"{self.date}: {self.done} of {self.total} settled, {self.per_second:.1f} a second, "
            f"{plural(self.retries, 'retry', 'retries')}, {self.uncertain} uncertain, "
            f"{plural(self.billable_calls, 'billable call')}"
            + ("" if self.estimated_cost is None else f" ({self.estimated_cost})")
            + ("" if left is None else f", {left:.0f} s left")
            + ("" if self.processes == 1 else f", {self.processes} processes")
        )


@dataclass(frozen=True, slots=True)
class VerifySummary:
    """What one run did to one partition."""

    date: str
    outcomes: Mapping[Outcome, int]
    """Submissions of the partition, by current outcome."""
    calls_to_make: int
    """Submissions to send when the run began."""
    calls: int = 0
    """Requests of which at least a byte may have left."""
    retries: int = 0
    lookups: int = 0
    adopted: int = 0
    """Uncertain submissions settled by a look-up."""
    billable_calls: int = 0
    """Calls of this run that were, or may have been, billed."""
    estimated_cost: Money | None = None
    held: int = 0
    """Uncertain submissions that await a decision."""
    stopped: Stopped = Stopped.NONE
    error: KycError | None = None
    """The error that ended the run, if one did."""
    why: str = ""
    """More about `stopped`: what to do, and when a run can continue."""

    @property
    def submissions(self) -> int:
        """Accepted submissions of the partition."""
        return sum(self.outcomes.values())

    @property
    def left(self) -> int:
        """Submissions that a later run sends."""
        return sum(self.outcomes.get(outcome, 0) for outcome in LEFT_FOR_LATER)

    @property
    def fault(self) -> str | None:
        """Why the run ended early, if somebody must act: not for a budget or a request to stop."""
        if self.error is not None:
            return str(self.error)
        return CIRCUIT_IS_OPEN if self.stopped is Stopped.CIRCUIT_OPEN else None

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name in Outcome if (count := self.outcomes.get(name)))
        return (
            f"{plural(self.submissions, 'submission')} ({counts or 'none'}), {plural(self.calls, 'call')}, "
            f"{plural(self.retries, 'retry', 'retries')}, {self.adopted} adopted by look-up, {self.held} held"
            + ("" if self.estimated_cost is None else f", estimated cost {self.estimated_cost}")
            + ("" if self.stopped is Stopped.NONE else f", stopped: {self.why or self.stopped}")
        )


def percentile(values: "array[float]", share: float) -> float | None:
    """The percentile at `share` (0 to 1), interpolated as in `quantile_cont`; None without values."""
    found: float | None = pc.quantile(pa.array(values, pa.float64()), q=share)[0].as_py()
    return found


def estimated_cost(settings: Settings, billable_calls: int) -> Money | None:
    """The cost at `DEEPXL_PRICE_PER_CALL`; None without a price."""
    price = settings.deepxl_price_per_call
    return None if price is None else Money(price * billable_calls, settings.deepxl_currency)
