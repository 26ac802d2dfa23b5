"""Held submissions: sent, but without a sound response, and a look-up did not settle the outcome.

An operator decides. `retry`: the next run looks the submission up once more and sends it again if it is not
found, which may be billed twice. `abandon`: it is never sent again, and its outcome is `abandoned`. `reopen`,
with a reason, makes a `refused` or `quarantined` submission uncertain again, with `retry`. The policy
`DEEPXL_UNCERTAIN=retry` decides once for each submission; `claims.py` records it.
"""

from collections.abc import Sequence
from typing import Final, Literal

from sqlalchemy import Connection, and_, bindparam, func, insert, or_, select, update

from kyc_pipeline.errors import UsageError
from kyc_pipeline.ledger.audit import AuditAction, AuditTrail
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.models import Decision, HeldSubmission, State
from kyc_pipeline.ledger.queries import call_count, calls_in_doubt, is_undecided, read_entries
from kyc_pipeline.ledger.schema import attempts, decisions, submissions
from kyc_pipeline.ledger.times import now, to_datetime
from kyc_pipeline.vocabulary import SUBMISSION_TAG

RESOLUTIONS: Final = {
    Decision.RETRY.value: "look it up, then send it again, which may cost a second call",
    Decision.ABANDON.value: "never send it again",
}
"""What an operator may decide about a held submission."""
RESOLUTIONS_HELP: Final = " ".join(f"{decision}: {what}." for decision, what in RESOLUTIONS.items())
_ACTIONS: Final = {Decision.RETRY: AuditAction.RETRY, Decision.ABANDON: AuditAction.ABANDON}


def list_held(ledger: Ledger, partition_date: str | None = None) -> list[HeldSubmission]:
    """Submissions that wait for a decision, oldest partition first. Does not create a ledger."""
    if not ledger.exists():
        return []
    query = (
        select(
            submissions.c.submission_id,
            submissions.c.partition_date,
            call_count,
            func.max(attempts.c.started_at),
            submissions.c.error,
        )
        .outerjoin(attempts, attempts.c.submission_id == submissions.c.submission_id)
        .where(is_undecided)
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


def resolve_held(
    ledger: Ledger, submission_id: str, decision: str, who: str, *, trail: AuditTrail | None = None
) -> None:
    """Records the decision (`retry` or `abandon`) and who made it; the newest decision counts.

    The same transaction adds an entry to `trail`. Raises :class:`UsageError` if the decision is neither, or
    the submission is unknown or not uncertain.
    """
    chosen = _checked(decision)
    if not ledger.exists():
        raise _unknown(submission_id)
    with ledger.write() as connection:
        state = _locked_state(connection, submission_id)
        if state is not State.UNCERTAIN:
            raise UsageError(f"submission {submission_id} is {state}, not held: nothing to decide")
        _decide(connection, [submission_id], chosen, who, trail)


def resolve_all_held(
    ledger: Ledger,
    decision: str,
    who: str,
    partition_date: str | None = None,
    *,
    trail: AuditTrail | None = None,
) -> list[str]:
    """As `resolve_held`, for all that are held, or those of one partition; returns their ids.

    Those that already have a decision keep it. Does not create a ledger.
    """
    chosen = _checked(decision)
    if not ledger.exists():
        return []
    query = select(submissions.c.submission_id).where(is_undecided).order_by(submissions.c.submission_id)
    if partition_date is not None:
        query = query.where(submissions.c.partition_date == partition_date)
    with ledger.write() as connection:
        ids = [str(key) for key in connection.execute(query.with_for_update()).scalars()]
        _decide(connection, ids, chosen, who, trail)
    return ids


def _checked(decision: str) -> Decision:
    if decision not in RESOLUTIONS:
        raise UsageError(f"a held submission is resolved as {' or '.join(RESOLUTIONS)}, not as {decision!r}")
    return Decision(decision)


def _decide(
    connection: Connection, ids: Sequence[str], decision: Decision, who: str, trail: AuditTrail | None
) -> None:
    if not ids:
        return
    made = {"decision": decision, "decided_by": who[:255], "decided_at": now()}
    connection.execute(
        update(submissions)
        .where(submissions.c.submission_id == bindparam("key"))
        .values(decision=decision, updated_at=made["decided_at"]),
        [{"key": key} for key in ids],
    )
    connection.execute(insert(decisions), [{"submission_id": key, **made} for key in ids])
    if trail is not None:
        trail.append(connection, _ACTIONS[decision], [(SUBMISSION_TAG, key) for key in ids])


def reopen(
    ledger: Ledger, submission_id: str, reason: str, who: str, *, trail: AuditTrail | None = None
) -> str:
    """Lets a refused or quarantined submission be sent again, and records why; returns its partition.

    The next run of the partition looks it up, adopts what it finds, or sends it. The same transaction adds
    an entry to `trail`. Raises :class:`UsageError` without a reason, or if the submission is unknown or in
    another state.
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
        date = connection.execute(select(submissions.c.partition_date).where(this)).scalar_one()
        if trail is not None:
            trail.append(
                connection,
                AuditAction.REOPEN,
                [(SUBMISSION_TAG, submission_id)],
                {"date": date, "was": state},
            )
        return str(date)


def _locked_state(connection: Connection, submission_id: str) -> State:
    """The state of a submission, whose row stays locked. Raises :class:`UsageError` if there is none."""
    query = select(submissions.c.state).where(submissions.c.submission_id == submission_id)
    state = connection.execute(query.with_for_update()).scalar_one_or_none()
    if state is None:
        raise _unknown(submission_id)
    return State(state)


def _unknown(submission_id: str) -> UsageError:
    return UsageError(f"submission {submission_id} is not in the ledger: see `kyc-pipeline held list`")


def partitions_of(ledger: Ledger, ids: Sequence[str]) -> list[str]:
    """The partitions of these submissions, in order."""
    return sorted({entry.partition_date for entry in read_entries(ledger, ids).values()})


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
