"""Read-only queries: entries, responses, outcomes and spend."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Row, Select, case, func, select

from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.models import OUTCOMES, Entry, Spend, State
from kyc_pipeline.ledger.schema import ERASED_CONTENT, attempts, submissions
from kyc_pipeline.vocabulary import Outcome

RESPONSE_COLUMNS: Final = (
    "http_status",
    "requested_at",
    "responded_at",
    "latency_ms",
    "response",
    "error",
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
_CALLS: Final = func.count(attempts.c.number)
_BILLABLE_CALLS: Final = func.coalesce(func.sum(attempts.c.billable), 0)
_RETRIES: Final = _CALLS - func.count(func.distinct(attempts.c.submission_id))


def read_entries(ledger: Ledger, submission_ids: Sequence[str]) -> dict[str, Entry]:
    """The entries of these submissions, by id. Unknown ids are left out."""
    return {row.submission_id: Entry._make(row) for row in _rows_of(ledger, select(*_ENTRY), submission_ids)}


def read_responses(ledger: Ledger, submission_ids: Sequence[str]) -> dict[str, tuple[Entry, dict[str, Any]]]:
    """Each entry with its columns of the lake's `verification_responses`, by id. Unknown ids are left out.

    Times are microseconds since the epoch, as in Arrow.
    """
    columns = {name: submissions.c[name] for name in RESPONSE_COLUMNS} | {
        "attempts": _CALLS,
        "billable_calls": _BILLABLE_CALLS,
    }
    query = (
        select(*_ENTRY, *columns.values())
        .outerjoin(attempts, attempts.c.submission_id == submissions.c.submission_id)
        .group_by(submissions.c.submission_id)
    )
    return {
        row.submission_id: (
            Entry._make(row[: len(_ENTRY)]),
            dict(zip(columns, row[len(_ENTRY) :], strict=True)),
        )
        for row in _rows_of(ledger, query, submission_ids)
    }


def first_attempts(ledger: Ledger, submission_ids: Sequence[str]) -> dict[str, int]:
    """When each of these submissions was first claimed, in microseconds since the epoch."""
    query = select(attempts.c.submission_id, func.min(attempts.c.started_at)).group_by(
        attempts.c.submission_id
    )
    found: dict[str, int] = {}
    with ledger.read() as connection:
        for start in range(0, len(submission_ids), _ROWS_PER_QUERY):
            ids = submission_ids[start : start + _ROWS_PER_QUERY]
            rows = connection.execute(query.where(attempts.c.submission_id.in_(ids)))
            found.update(rows.tuples().all())
    return found


def read_outcomes(ledger: Ledger, partition_date: str) -> Iterator[Sequence[tuple[str, Outcome]]]:
    """Yields batches of id and outcome of the partition's submissions, except erased ones."""
    query = select(submissions.c.submission_id, submissions.c.state).where(
        submissions.c.partition_date == partition_date, submissions.c.content_sha256 != ERASED_CONTENT
    )
    with ledger.read() as connection:
        rows = connection.execution_options(yield_per=_ROWS_PER_QUERY).execute(query)
        for batch in rows.partitions():
            yield [(submission_id, OUTCOMES[state]) for submission_id, state in batch]


def read_spend(ledger: Ledger, partition_date: str) -> Spend:
    """The partition's calls over all runs."""
    query = (
        select(_CALLS, _BILLABLE_CALLS, _RETRIES)
        .select_from(attempts.join(submissions))
        .where(submissions.c.partition_date == partition_date)
    )
    with ledger.read() as connection:
        return Spend(*connection.execute(query).one())


def read_spend_of_runs(ledger: Ledger, run_ids: Sequence[str]) -> Spend:
    """The calls of these runs, over all partitions. Does not create a ledger."""
    if not run_ids or not ledger.exists():
        return Spend(0, 0)
    query = select(_CALLS, _BILLABLE_CALLS, _RETRIES).where(attempts.c.run_id.in_(run_ids))
    with ledger.read() as connection:
        return Spend(*connection.execute(query).one())


def _rows_of(ledger: Ledger, query: Select[Any], submission_ids: Sequence[str]) -> Iterator[Row[Any]]:
    """The query's rows for these submissions, from one snapshot."""
    with ledger.read() as connection:
        for start in range(0, len(submission_ids), _ROWS_PER_QUERY):
            ids = submission_ids[start : start + _ROWS_PER_QUERY]
            yield from connection.execute(query.where(submissions.c.submission_id.in_(ids)))
