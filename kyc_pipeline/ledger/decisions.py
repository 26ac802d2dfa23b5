"""Held submissions: they were sent, the response was lost and a look-up did not settle the outcome.

An operator decides. `retry`: the next run looks the submission up once more and sends it again if it is not
found, which may be billed twice. `abandon`: it is never sent again. Its outcome stays `uncertain` (a `failed`
submission would be sent again), but it is no longer held.
"""

import getpass
import os
from typing import Literal

from sqlalchemy import func, insert, or_, select, update

from kyc_pipeline.errors import UsageError
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.models import Decision, HeldSubmission, State
from kyc_pipeline.ledger.schema import attempts, decisions, submissions
from kyc_pipeline.ledger.times import now, to_datetime


def list_held(ledger: Ledger, partition_date: str | None = None) -> list[HeldSubmission]:
    """Submissions that wait for a decision, oldest partition first. Does not create a ledger."""
    if not ledger.exists():
        return []
    query = (
        select(
            submissions.c.submission_id,
            submissions.c.partition_date,
            func.count(attempts.c.number),
            func.max(attempts.c.started_at),
            submissions.c.error,
        )
        .outerjoin(attempts, attempts.c.submission_id == submissions.c.submission_id)
        .where(submissions.c.state == State.UNCERTAIN, submissions.c.decision.is_(None))
        .group_by(submissions.c.submission_id)
        .order_by(submissions.c.partition_date, submissions.c.submission_id)
    )
    if partition_date is not None:
        query = query.where(submissions.c.partition_date == partition_date)
    with ledger.read() as connection:
        return [
            HeldSubmission(submission_id, date, calls, to_datetime(last_sent_at), error)
            for submission_id, date, calls, last_sent_at, error in connection.execute(query)
        ]


def resolve_held(ledger: Ledger, submission_id: str, decision: str, who: str) -> None:
    """Records the decision (`retry` or `abandon`) and who made it; the newest decision counts.

    Raises :class:`UsageError` if the decision is neither, or the submission is unknown or not uncertain.
    """
    try:
        chosen = Decision(decision)
    except ValueError:
        raise UsageError(f"a held submission is resolved as retry or abandon, not as {decision!r}") from None
    unknown = UsageError(f"submission {submission_id} is not in the ledger: see `held list`")
    if not ledger.exists():
        raise unknown
    this = submissions.c.submission_id == submission_id
    with ledger.write() as connection:
        query = select(submissions.c.state).where(this).with_for_update()
        state = connection.execute(query).scalar_one_or_none()
        if state is None:
            raise unknown
        if state is not State.UNCERTAIN:
            raise UsageError(f"submission {submission_id} is {state}, not held: nothing to decide")
        decided_at = now()
        connection.execute(update(submissions).where(this).values(decision=chosen, updated_at=decided_at))
        connection.execute(
            insert(decisions).values(
                submission_id=submission_id, decision=chosen, decided_by=who[:255], decided_at=decided_at
            )
        )


def operator() -> str:
    """The login name of this process, recorded with a decision."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.getuid()}"


def dates_to_send_again(ledger: Ledger, policy: Literal["hold", "retry"]) -> list[str]:
    """Partitions with uncertain submissions that the next run may send again, by decision or `policy`."""
    if not ledger.exists():
        return []
    again = submissions.c.decision == Decision.RETRY
    if policy == "retry":
        again = or_(again, submissions.c.decision.is_(None))
    query = select(submissions.c.partition_date).where(submissions.c.state == State.UNCERTAIN, again)
    with ledger.read() as connection:
        return sorted(connection.execute(query.distinct()).scalars())
