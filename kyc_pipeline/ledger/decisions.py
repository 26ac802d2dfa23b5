"""Held submissions: sent, but without a sound response, and a look-up did not settle the outcome.

An operator decides. `retry`: the next run looks the submission up once more and sends it again if it is not
found, which may be billed twice. `abandon`: it is never sent again. Its outcome stays `uncertain` (a `failed`
submission would be sent again), but it is no longer held. `reopen`, with a reason, makes a `refused` or
`quarantined` submission uncertain again, with `retry`. The policy `DEEPXL_UNCERTAIN=retry` decides once for
each submission; `claims.py` records it.
"""

import getpass
import os
from typing import Literal

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from kyc_pipeline.errors import UsageError
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.models import Decision, HeldSubmission, State
from kyc_pipeline.ledger.queries import calls_in_doubt
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
    if decision not in (Decision.RETRY, Decision.ABANDON):
        raise UsageError(f"a held submission is resolved as retry or abandon, not as {decision!r}")
    chosen = Decision(decision)
    if not ledger.exists():
        raise _unknown(submission_id)
    with ledger.write() as connection:
        state = _locked_state(connection, submission_id)
        if state is not State.UNCERTAIN:
            raise UsageError(f"submission {submission_id} is {state}, not held: nothing to decide")
        decided_at = now()
        connection.execute(
            update(submissions)
            .where(submissions.c.submission_id == submission_id)
            .values(decision=chosen, updated_at=decided_at)
        )
        connection.execute(
            insert(decisions).values(
                submission_id=submission_id, decision=chosen, decided_by=who[:255], decided_at=decided_at
            )
        )


def reopen(ledger: Ledger, submission_id: str, reason: str, who: str) -> str:
    """Lets a refused or quarantined submission be sent again, and records why; returns its partition.

    The next run of the partition looks it up, adopts what it finds, or sends it. Raises :class:`UsageError`
    without a reason, or if the submission is unknown or in another state.
    """
    if not reason.strip():
        raise UsageError("say why the submission is reopened: --reason must not be empty")
    if not ledger.exists():
        raise _unknown(submission_id)
    this = submissions.c.submission_id == submission_id
    with ledger.write() as connection:
        state = _locked_state(connection, submission_id)
        if state not in (State.REFUSED, State.QUARANTINED):
            raise UsageError(
                f"submission {submission_id} is {state}: only a refused or quarantined one can be reopened"
            )
        decided_at = now()
        connection.execute(
            update(submissions)
            .where(this)
            .values(
                state=State.UNCERTAIN,
                decision=Decision.RETRY,
                response=None,  # the attempt keeps it
                error=f"{state}, then reopened",
                updated_at=decided_at,
            )
        )
        connection.execute(
            insert(decisions).values(
                submission_id=submission_id,
                decision=Decision.REOPEN,
                decided_by=who[:255],
                decided_at=decided_at,
                reason=reason.strip(),
            )
        )
        return str(connection.execute(select(submissions.c.partition_date).where(this)).scalar_one())


def _locked_state(connection: Connection, submission_id: str) -> State:
    """The state of a submission, whose row stays locked. Raises :class:`UsageError` if there is none."""
    query = select(submissions.c.state).where(submissions.c.submission_id == submission_id)
    state = connection.execute(query.with_for_update()).scalar_one_or_none()
    if state is None:
        raise _unknown(submission_id)
    return State(state)


def _unknown(submission_id: str) -> UsageError:
    return UsageError(f"submission {submission_id} is not in the ledger: see `held list`")


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
        again = or_(again, and_(submissions.c.decision.is_(None), calls_in_doubt <= 1))
    query = select(submissions.c.partition_date).where(submissions.c.state == State.UNCERTAIN, again)
    with ledger.read() as connection:
        return sorted(connection.execute(query.distinct()).scalars())
