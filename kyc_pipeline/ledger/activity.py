"""The current activity, for monitoring: open claims, recent calls, totals.

Each figure takes at most one scan of `attempts` or `submissions`: a second for a million calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.models import AttemptResult, State, outcome_of
from kyc_pipeline.ledger.queries import call_count
from kyc_pipeline.ledger.schema import attempts, submissions
from kyc_pipeline.ledger.times import SECOND
from kyc_pipeline.vocabulary import Outcome

PACE_SECONDS: Final = 60
_FAILURES: Final = frozenset(
    {AttemptResult.NOT_PROCESSED, AttemptResult.MAYBE_PROCESSED, AttemptResult.TURNED_AWAY}
)


@dataclass(frozen=True, slots=True)
class Activity:
    """Counts, and ages in seconds."""

    calls: Mapping[str, int]
    """All claims ever, by result; `open` for those without one."""
    submissions: Mapping[Outcome, int]
    """All submissions that were ever claimed, by outcome."""
    calls_per_second: float
    """Calls that ended in the last minute, per second."""
    failures_in_a_row: int
    """How many calls have failed since the last one that did not; at most `last`."""
    last_run: str | None
    """The run that made the newest of these calls."""
    oldest_claim: float
    """Age of the oldest claim without a result; 0 without one."""


def read_activity(ledger: Ledger, last: int) -> Activity:
    """The activity now, with the failures among the `last` calls. The ledger must exist."""
    a, s = attempts.c, submissions.c
    with ledger.read() as connection:
        now = ledger.now(connection)
        results = connection.execute(select(a.result, func.count()).group_by(a.result)).tuples().all()
        query = select(s.state, s.decision, func.count()).group_by(s.state, s.decision)
        states = connection.execute(query).tuples().all()
        recent = select(call_count).where(a.ended_at > now - PACE_SECONDS * SECOND)
        newest = select(a.result, a.run_id).where(a.ended_at.is_not(None))
        ended = connection.execute(newest.order_by(a.ended_at.desc()).limit(last)).tuples().all()
        claimed = select(func.min(s.updated_at)).where(s.state == State.CLAIMED)
        return Activity(
            calls={result or "open": count for result, count in results},
            submissions={
                outcome: sum(
                    count for state, decision, count in states if outcome_of(state, decision) is outcome
                )
                for outcome in Outcome
            },
            calls_per_second=connection.execute(recent).scalar_one() / PACE_SECONDS,
            failures_in_a_row=_leading([result for result, _ in ended]),
            last_run=ended[0][1] if ended else None,
            oldest_claim=_age(now, connection.execute(claimed).scalar_one()),
        )


def _leading(results: Sequence[str | None]) -> int:
    """How many failures the newest results begin with."""
    return next(
        (position for position, result in enumerate(results) if result not in _FAILURES), len(results)
    )


def _age(now: int, moment: int | None) -> float:
    return 0.0 if moment is None else max(now - moment, 0) / SECOND
