"""Read-only queries: entries, responses, outcomes, held submissions and spend."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Row, Select, and_, bindparam, case, func, or_, select

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.models import AttemptResult, Entry, HeldDay, Spend, State, outcome_of
from kyc_pipeline.ledger.schema import ERASED_CONTENT, attempts, submissions
from kyc_pipeline.ledger.times import to_datetime, to_microseconds
from kyc_pipeline.vocabulary import Outcome

RESPONSE_COLUMNS: Final = (
    "http_status",
    "requested_at",
    "responded_at",
    "latency_ms",
    "response",
    "error",
    "sent",
)
"""Columns that the ledger's `submissions` and the lake's `verification_responses` have in common."""
_ROWS_PER_QUERY: Final = 5000
calls_in_doubt: Final = (
    select(func.count())
    .where(attempts.c.submission_id == submissions.c.submission_id, attempts.c.billable == 1)
    .correlate(submissions)
    .scalar_subquery()
)
"""How many calls of a submission may have been billed."""
_ENTRY: Final = [
    *(submissions.c[name] for name in Entry._fields[:-1]),
    # Counted only where it matters: a partition may have 100,000 completed submissions.
    case((submissions.c.state.in_([State.UNCERTAIN, State.CLAIMED]), calls_in_doubt), else_=0),
]
was_sent: Final = or_(attempts.c.result.is_(None), attempts.c.result != AttemptResult.NOT_SENT)
"""Whether an attempt is a call, which means that a byte may have been sent."""
call_count: Final = func.count(case((was_sent, attempts.c.number)))
"""How many of the attempts are calls."""
_BILLABLE_CALLS: Final = func.coalesce(func.sum(attempts.c.billable), 0)
_RETRIES: Final = call_count - func.count(func.distinct(case((was_sent, attempts.c.submission_id))))
is_undecided: Final = and_(submissions.c.state == State.UNCERTAIN, submissions.c.decision.is_(None))
"""Whether a submission waits for a decision."""
_is_turned_away: Final = and_(
    submissions.c.state == State.TURNED_AWAY,
    submissions.c.content_sha256 != ERASED_CONTENT,
    calls_in_doubt == 0,
)
_TURNED_AWAY: Final = select(submissions.c.submission_id, submissions.c.content_sha256).where(
    _is_turned_away, submissions.c.partition_date == bindparam("date")
)
_of_these: Final = submissions.c.submission_id.in_(bindparam("ids", expanding=True))
_ENTRIES: Final = select(*_ENTRY).where(_of_these)
_RESPONSES: Final = {name: submissions.c[name] for name in RESPONSE_COLUMNS} | {
    "attempts": call_count,
    "billable_calls": _BILLABLE_CALLS,
}
_ENTRIES_WITH_RESPONSES: Final = (
    select(*_ENTRY, *_RESPONSES.values())
    .outerjoin(attempts, attempts.c.submission_id == submissions.c.submission_id)
    .where(_of_these)
    .group_by(submissions.c.submission_id)
)


def read_entries(ledger: Ledger, submission_ids: Sequence[str]) -> dict[str, Entry]:
    """The entries of these submissions, by id. Unknown ids are left out."""
    return {row.submission_id: Entry._make(row) for row in _rows_of(ledger, _ENTRIES, submission_ids)}


def read_responses(ledger: Ledger, submission_ids: Sequence[str]) -> dict[str, tuple[Entry, dict[str, Any]]]:
    """Each entry with its columns of the lake's `verification_responses`, by id. Unknown ids are left out.

    Times are microseconds since the epoch, as in Arrow.
    """
    return {
        row.submission_id: (
            Entry._make(row[: len(_ENTRY)]),
            dict(zip(_RESPONSES, row[len(_ENTRY) :], strict=True)),
        )
        for row in _rows_of(ledger, _ENTRIES_WITH_RESPONSES, submission_ids)
    }


class Earlier(NamedTuple):
    """The attempts of a submission so far."""

    first_at: int
    """When it was first claimed, in microseconds since the epoch."""
    sent: tuple[str | None, ...]
    """The different values of `sent`."""


def earlier_attempts(ledger: Ledger, submission_ids: Sequence[str]) -> dict[str, Earlier]:
    """The attempts of these submissions, by id. Those without any are left out."""
    query = select(attempts.c.submission_id, func.min(attempts.c.started_at), attempts.c.sent).group_by(
        attempts.c.submission_id, attempts.c.sent
    )
    found: dict[str, Earlier] = {}
    with ledger.read() as connection:
        for start in range(0, len(submission_ids), _ROWS_PER_QUERY):
            ids = submission_ids[start : start + _ROWS_PER_QUERY]
            rows = connection.execute(query.where(attempts.c.submission_id.in_(ids)))
            for submission_id, first_at, sent in rows:
                known = found.get(submission_id, Earlier(first_at, ()))
                found[submission_id] = Earlier(min(known.first_at, first_at), (*known.sent, sent))
    return found


def turned_away(ledger: Ledger, partition_date: str) -> dict[str, str]:
    """The partition's submissions that were turned away and are not known to be billed: content by id."""
    with ledger.read() as connection:
        return dict(connection.execute(_TURNED_AWAY, {"date": partition_date}).tuples().all())


def dates_turned_away(ledger: Ledger) -> list[str]:
    """The partitions that have such submissions, in order. Does not create a ledger."""
    if not ledger.exists():
        return []
    query = select(submissions.c.partition_date).distinct().where(_is_turned_away)
    with ledger.read() as connection:
        return sorted(connection.execute(query).scalars())


def read_outcomes(ledger: Ledger, partition_date: str) -> Iterator[Sequence[tuple[str, Outcome]]]:
    """Yields batches of id and outcome of the partition's submissions, except erased ones."""
    query = select(submissions.c.submission_id, submissions.c.state, submissions.c.decision).where(
        submissions.c.partition_date == partition_date, submissions.c.content_sha256 != ERASED_CONTENT
    )
    with ledger.read() as connection:
        rows = connection.execution_options(yield_per=_ROWS_PER_QUERY).execute(query)
        for batch in rows.partitions():
            yield [(submission_id, outcome_of(state, decision)) for submission_id, state, decision in batch]


def read_spend(ledger: Ledger, partition_date: str, run_id: str | None = None) -> Spend:
    """The partition's calls over all runs, or of one."""
    query = (
        select(call_count, _BILLABLE_CALLS, _RETRIES)
        .select_from(attempts.join(submissions))
        .where(submissions.c.partition_date == partition_date)
    )
    if run_id is not None:
        query = query.where(attempts.c.run_id == run_id)
    with ledger.read() as connection:
        return Spend(*connection.execute(query).one())


def read_spend_of_runs(ledger: Ledger, run_ids: Sequence[str]) -> Spend:
    """The calls of these runs, over all partitions. Does not create a ledger."""
    if not run_ids or not ledger.exists():
        return Spend(0, 0)
    query = select(call_count, _BILLABLE_CALLS, _RETRIES).where(attempts.c.run_id.in_(run_ids))
    with ledger.read() as connection:
        return Spend(*connection.execute(query).one())


def read_spend_since(ledger: Ledger, moment: datetime) -> Spend:
    """The calls claimed since `moment`, over all runs and partitions. Does not create a ledger."""
    if not ledger.exists():
        return Spend(0, 0)
    query = select(call_count, _BILLABLE_CALLS, _RETRIES).where(
        attempts.c.started_at >= to_microseconds(moment)
    )
    with ledger.read() as connection:
        return Spend(*connection.execute(query).one())


def read_held(ledger: Ledger) -> list[HeldDay]:
    """The partitions with held submissions, in order. Does not create a ledger."""
    if not ledger.exists():
        return []
    query = (
        select(submissions.c.partition_date, func.count(), func.min(submissions.c.updated_at))
        .where(is_undecided)
        .group_by(submissions.c.partition_date)
        .order_by(submissions.c.partition_date)
    )
    with ledger.read() as connection:
        return [HeldDay(day, count, to_datetime(since)) for day, count, since in connection.execute(query)]


def _rows_of(ledger: Ledger, query: Select[Any], submission_ids: Sequence[str]) -> Iterator[Row[Any]]:
    """The rows of `query` with these submissions as its parameter `ids`, from one snapshot."""
    with ledger.read() as connection:
        for start in range(0, len(submission_ids), _ROWS_PER_QUERY):
            ids = submission_ids[start : start + _ROWS_PER_QUERY]
            yield from connection.execute(query, {"ids": ids})
