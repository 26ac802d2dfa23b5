"""Claims and results, which ensure that a call is paid once.

* A submission is *claimed* before it is sent, and only the holder of its partition's lease can claim.
* A claim ends with a recorded result or becomes `uncertain`; it never becomes "not sent".
* `completed` is final. `refused` and `quarantined` are never claimed again unless an operator reopens them.
* `failed` (certainly not processed) may be claimed again; `turned_away` after a look-up that found no record.
  Both take the submission's current date and content; an uncertain one keeps those that were sent.
* `uncertain` is claimed again only after such a look-up, and only if an operator or the policy allows it. The
  policy allows it once for each submission, and only while at most one of its calls is in doubt.
* While an earlier call is in doubt, only a sound response or an adopted record settles a submission. An
  abandoned one stays so if its call has a late result that is not final.
* The result of a call is always recorded, even if the lease was lost: the call was made. A submission shows
  one response. If there is another (from a second call, or from a call whose record a look-up had already
  adopted), the history of attempts keeps it.
* `commit` is idempotent: after a lost connection, nobody knows whether the last commit took place.
* Each commit checks itself, in production too: a result needs a claim, a claim needs a submission that may be
  sent, every change finds its row, and the ledger is not older than the last commit. The writer commits what
  is sound and ends the run.
"""

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from kyc_pipeline.ledger.database import InvariantBroken, Ledger
from kyc_pipeline.ledger.day_budget import DayBudget, count_calls, unsent_calls
from kyc_pipeline.ledger.identity import advance, lock_identity
from kyc_pipeline.ledger.leases import is_held
from kyc_pipeline.ledger.models import (
    Adoption,
    AttemptResult,
    Claim,
    ClaimResult,
    Decision,
    Discovery,
    Judgement,
    Lease,
    Settlement,
    State,
)
from kyc_pipeline.ledger.queries import calls_in_doubt
from kyc_pipeline.ledger.schema import attempts, decisions, submissions
from kyc_pipeline.ledger.times import now, to_microseconds

POLICY: Final = "DEEPXL_UNCERTAIN=retry"
"""Who decided, if no operator did."""
_WITH_RESPONSE: Final = frozenset({State.COMPLETED, State.QUARANTINED})
_CLAIMABLE: Final = (State.FAILED, State.TURNED_AWAY, State.UNCERTAIN)
_UNKNOWN_RUN: Final = "unknown"
"""The run of a call that only DeepXL's history knows."""
_NOT_COUNTED: Final = -1
"""Row count of a driver that does not count inserted rows; an INSERT that fails raises an error anyway."""
_SECOND: Final = "a second response: the submission already had one"
_KEEPS_DECISION: Final = frozenset(
    {
        AttemptResult.NOT_SENT,
        AttemptResult.NOT_PROCESSED,
        AttemptResult.TURNED_AWAY,
        AttemptResult.ACCESS_DENIED,
    }
)


def commit(
    ledger: Ledger,
    lease: Lease,
    claims: Sequence[Claim],
    results: Sequence[Settlement],
    day_budget: DayBudget | None = None,
) -> frozenset[str]:
    """Records results, then makes claims, in one transaction. Returns the tokens of the claims won.

    No claim is won once the lease is lost, or beyond `day_budget`. A claim is lost if the submission is in a
    state that may not be sent, or may have been sent with another date or content.
    """
    with ledger.write() as connection:
        if day_budget is not None and day_budget.max_calls is not None:
            # No other limited run may claim until this commit ends. Always first, even without claims: if
            # some commits took this lock first and others last, they could deadlock on PostgreSQL.
            lock_identity(connection)
        # Lock the lease before any submission, as a takeover does: the reverse can deadlock on PostgreSQL.
        may_claim = is_held(connection, lease)
        time, calls = now(), Counter[int]()
        ended = [result for result in results if isinstance(result, ClaimResult)]
        calls.subtract(unsent_calls(connection, ended))
        _record(connection, ended)
        _adopt(connection, [result for result in results if isinstance(result, Adoption)])
        found = [result for result in results if isinstance(result, Discovery)]
        calls[time] += _discover(connection, lease, found, time)
        judged = [result for result in results if isinstance(result, Judgement)]
        # Only the lease shows that nobody has sent it since the look-up.
        _judge(connection, [each for each in judged if may_claim or each.state is not State.FAILED])
        won: frozenset[str] = frozenset()
        if claims and may_claim:
            won, started = _claim(connection, lease, claims, day_budget or DayBudget(), time)
            calls[time] += started
        generation = advance(ledger, connection)
        count_calls(connection, calls)
    ledger.generation = max(ledger.generation, generation)
    return won


def _claim(
    connection: Connection, lease: Lease, claims: Sequence[Claim], day_budget: DayBudget, time: int
) -> tuple[frozenset[str], int]:
    """Makes the claims that are allowed; returns their tokens, and how many of them are new.

    The lease's row is locked, so nobody else claims for this date. The submissions' rows are locked too
    (in one order, against deadlocks), since a failed submission may be claimed for another date.
    """
    known = _known(connection, claims)
    numbers = _attempts_so_far(connection, known)
    room = day_budget.room(connection, time)
    won: set[str] = set()
    new: dict[str, dict[str, Any]] = {}
    again: dict[str, dict[str, Any]] = {}
    started: list[dict[str, Any]] = []
    decided: list[dict[str, Any]] = []
    for claim in claims:
        key = claim.submission_id
        row = known.get(key)
        if row is not None and row.state is State.CLAIMED and row.claim_token == claim.token:
            won.add(claim.token)  # an earlier commit of this claim did take place
            continue
        if key in new or key in again or not (row is None or _may_be_sent(row, lease, claim)):
            continue
        if room is not None and len(started) >= room:
            continue
        (new if row is None else again)[key] = {
            "key": key,
            "partition_date": lease.partition_date,
            "content_sha256": claim.content_sha256,
            "claim_token": claim.token,
            "sent": claim.sent,
            "time": time,
        }
        won.add(claim.token)
        if row is not None and row.state is State.UNCERTAIN and row.decision is None:
            decided.append({"submission_id": key, "decided_at": time})
        started.append(
            {
                "submission_id": key,
                "number": numbers.get(key, 0) + 1,
                "token": claim.token,
                "run_id": lease.run_id,
                "started_at": time,
                "billable": 1,
                "sent": claim.sent,
            }
        )
    if new:
        _expect(connection.execute(_INSERT_CLAIM, list(new.values())).rowcount, len(new), "claims")
    if again:
        _expect(connection.execute(_CLAIM_AGAIN, list(again.values())).rowcount, len(again), "claims")
    if started:
        _expect(connection.execute(insert(attempts), started).rowcount, len(started), "attempts")
    if decided:
        connection.execute(_DECIDE, decided)
    day_budget.take(len(started))
    return frozenset(won), len(started)


_CLAIMED: Final = {
    "state": State.CLAIMED,
    "requested_at": bindparam("time"),
    "updated_at": bindparam("time"),
}
_INSERT_CLAIM: Final = insert(submissions).values(submission_id=bindparam("key"), **_CLAIMED)
# Clears the last attempt's figures. A decision, the policy's too, stays until a result settles it.
_CLAIM_AGAIN: Final = (
    update(submissions)
    .where(
        submissions.c.submission_id == bindparam("key"),
        or_(*(submissions.c.state == state for state in _CLAIMABLE)),
    )
    .values(
        http_status=None,
        responded_at=None,
        latency_ms=None,
        error=None,
        decision=case((submissions.c.state == State.UNCERTAIN, Decision.RETRY), else_=submissions.c.decision),
        **_CLAIMED,
    )
)
_DECIDE: Final = insert(decisions).values(decision=Decision.RETRY, decided_by=POLICY)


def _expect(changed: int, expected: int, what: str) -> None:
    if changed not in (expected, _NOT_COUNTED):
        raise InvariantBroken(
            f"the ledger took {changed} of {expected} {what}: nothing more is sent; run "
            "`kyc-pipeline ledger check`, and report this"
        )


def _known(connection: Connection, claims: Sequence[Claim | Discovery]) -> dict[str, Row[Any]]:
    """Locks the submissions that are already in the ledger; returns their rows by id."""
    query = (
        select(
            submissions.c.submission_id,
            submissions.c.partition_date,
            submissions.c.content_sha256,
            submissions.c.state,
            submissions.c.decision,
            submissions.c.claim_token,
            calls_in_doubt.label("calls_in_doubt"),
        )
        .where(submissions.c.submission_id.in_([claim.submission_id for claim in claims]))
        .order_by(submissions.c.submission_id)
        .with_for_update()
    )
    return {row.submission_id: row for row in connection.execute(query)}


def _attempts_so_far(connection: Connection, known: Mapping[str, Row[Any]]) -> dict[str, int]:
    """The newest attempt's number by id. Lock the rows first, or it may be out of date."""
    if not known:
        return {}
    query = (
        select(attempts.c.submission_id, func.max(attempts.c.number))
        .where(attempts.c.submission_id.in_(list(known)))
        .group_by(attempts.c.submission_id)
    )
    return dict(connection.execute(query).tuples().all())


def _may_be_sent(row: Row[Any], lease: Lease, claim: Claim) -> bool:
    if row.state is State.FAILED:
        return True
    if row.state is State.TURNED_AWAY:
        return claim.resend
    is_same = row.partition_date == lease.partition_date and row.content_sha256 == claim.content_sha256
    if not (is_same and row.state is State.UNCERTAIN and claim.resend):
        return False
    by_policy = row.decision is None and claim.by_policy and row.calls_in_doubt <= 1
    return bool(row.decision is Decision.RETRY or by_policy)


def _record(connection: Connection, results: Sequence[ClaimResult]) -> None:
    if not results:
        return
    time = now()
    completed = _completed(connection, results)
    ended = connection.execute(
        _END_ATTEMPT,
        [
            {
                "key": result.claim.submission_id,
                "of_claim": result.claim.token,
                "ended_at": time,
                "result": result.result,
                "http_status": result.http_status,
                "latency_ms": result.latency_ms,
                "billable": int(result.billable),
                **_history(result, completed),
            }
            for result in results
        ],
    )
    if ended.rowcount != len(results):
        _check_claimed(connection, results)
    # A response settles the submission even for an old claim; other results count only for the newest claim.
    settling = [result for result in results if result.state is State.COMPLETED]
    if settling:
        connection.execute(_SETTLE, [_new_state(result, time) for result in settling])
    others = [result for result in results if result.state is not State.COMPLETED]
    if others:
        connection.execute(
            _SET_STATE,
            [
                _new_state(result, time)
                | {
                    "of_claim": result.claim.token,
                    "to_state": result.state,
                    "keeps": int(result.result in _KEEPS_DECISION),
                }
                for result in others
            ],
        )


_END_ATTEMPT: Final = update(attempts).where(
    attempts.c.submission_id == bindparam("key"),
    attempts.c.token == bindparam("of_claim"),
    attempts.c.ended_at.is_(None),
)
_SENT_AT: Final[ColumnElement[int]] = func.coalesce(
    bindparam("sent_at", type_=BigInteger), submissions.c.requested_at
)
_SETTLE: Final = (
    update(submissions)
    .where(submissions.c.submission_id == bindparam("key"), submissions.c.state != State.COMPLETED)
    .values(state=State.COMPLETED, decision=None, requested_at=_SENT_AT)
)
_earlier: Final = attempts.alias("earlier")
_IN_DOUBT: Final = exists().where(
    _earlier.c.submission_id == submissions.c.submission_id,
    _earlier.c.token != bindparam("of_claim"),
    _earlier.c.billable == 1,
)
_to_state: Final = bindparam("to_state", type_=submissions.c.state.type)
_IS_ABANDONED: Final = submissions.c.decision == Decision.ABANDON
_STAYS_UNCERTAIN: Final = or_(
    _IN_DOUBT, and_(_IS_ABANDONED, _to_state != State.REFUSED, _to_state != State.QUARANTINED)
)
_SET_STATE: Final = (
    update(submissions)
    .where(
        submissions.c.submission_id == bindparam("key"),
        submissions.c.claim_token == bindparam("of_claim"),
        or_(submissions.c.state == State.CLAIMED, submissions.c.state == State.UNCERTAIN),
    )
    .values(
        state=case((_STAYS_UNCERTAIN, State.UNCERTAIN), else_=_to_state),
        decision=case(
            (or_(bindparam("keeps") == 1, and_(_STAYS_UNCERTAIN, _IS_ABANDONED)), submissions.c.decision),
            else_=None,
        ),
        requested_at=_SENT_AT,
    )
)


def _completed(connection: Connection, results: Sequence[ClaimResult]) -> set[str]:
    """The submissions that already have a response. Locks their rows."""
    ids = [result.claim.submission_id for result in results if result.state in _WITH_RESPONSE]
    query = (
        select(submissions.c.submission_id)
        .where(submissions.c.submission_id.in_(ids), submissions.c.state == State.COMPLETED)
        .order_by(submissions.c.submission_id)
        .with_for_update()
    )
    return set(connection.execute(query).scalars()) if ids else set()


def _history(result: ClaimResult, completed: set[str]) -> dict[str, str | None]:
    """What an attempt keeps of its result: texts that the submission does not show, or may lose.

    Adds the submission to `completed` if the result completes it.
    """
    is_second = result.claim.submission_id in completed
    if result.state is State.COMPLETED:
        completed.add(result.claim.submission_id)
    if is_second and result.state in _WITH_RESPONSE:
        error = f"{_SECOND}; {result.error}" if result.error else _SECOND
        return {"error": error, "body": result.response}
    # A sound response of another call replaces a quarantined one.
    body = result.response if result.state is State.QUARANTINED else result.body
    return {"error": result.error, "body": body}


def _check_claimed(connection: Connection, results: Sequence[ClaimResult]) -> None:
    """Checks that each attempt has begun; in a repeated commit some have ended already."""
    query = select(attempts.c.token).where(
        attempts.c.submission_id.in_([result.claim.submission_id for result in results])
    )
    known = set(connection.execute(query).scalars())
    _expect(sum(result.claim.token in known for result in results), len(results), "results")


def _new_state(result: ClaimResult, time: int) -> dict[str, Any]:
    return {
        "key": result.claim.submission_id,
        "http_status": result.http_status,
        "sent_at": to_microseconds(result.requested_at),
        "responded_at": to_microseconds(result.responded_at),
        "latency_ms": result.latency_ms,
        "response": result.response,
        "error": result.error,
        "sent": result.claim.sent,
        "updated_at": time,
    }


def _adopt(connection: Connection, adoptions: Sequence[Adoption]) -> None:
    if not adoptions:
        return
    time = now()
    connection.execute(_BILL_NEWEST, [{"key": adoption.submission_id} for adoption in adoptions])
    connection.execute(
        _ADOPT,
        [
            {
                "key": adoption.submission_id,
                "partition_date": adoption.partition_date,
                "content_sha256": adoption.content_sha256,
                "http_status": adoption.http_status,
                "responded_at": to_microseconds(adoption.responded_at),
                "response": adoption.response,
                "error": adoption.error,
                "sent": adoption.sent,
                "updated_at": time,
            }
            for adoption in adoptions
        ],
    )


# Not `in_`, which SQLAlchemy does not execute for several rows at once.
_adoptable: Final = or_(
    *(submissions.c.state == state for state in (State.UNCERTAIN, State.TURNED_AWAY, State.QUARANTINED))
)
_IS_ADOPTABLE: Final = exists().where(submissions.c.submission_id == bindparam("key"), _adoptable)
# Keeps `requested_at`, and clears the latency: that of the look-up is not that of the call.
_ADOPT: Final = (
    update(submissions)
    .where(submissions.c.submission_id == bindparam("key"), _adoptable)
    .values(state=State.COMPLETED, decision=None, latency_ms=None)
)


_newest: Final = attempts.alias("newest")
_others: Final = attempts.alias("others")
# A turned-away call may have been billed after all; count it unless another call of the submission counts.
_BILL_NEWEST: Final = (
    update(attempts)
    .where(
        attempts.c.submission_id == bindparam("key"),
        attempts.c.number
        == select(func.max(_newest.c.number))
        .where(_newest.c.submission_id == bindparam("key"))
        .scalar_subquery(),
        ~exists().where(_others.c.submission_id == bindparam("key"), _others.c.billable == 1),
        _IS_ADOPTABLE,
    )
    .values(billable=1)
)


def _discover(connection: Connection, lease: Lease, found: Sequence[Discovery], time: int) -> int:
    """Records calls that the ledger does not know, with an attempt each, so that costs add up.

    Returns how many.
    """
    if not found:
        return 0
    known = _known(connection, found)
    numbers = _attempts_so_far(connection, known)
    # A state other than failed is the result of a call that the ledger knows: it stays.
    news = [
        each
        for each in found
        if each.submission_id not in known or known[each.submission_id].state is State.FAILED
    ]
    for each in news:
        row = {
            "partition_date": lease.partition_date,
            "content_sha256": each.content_sha256,
            "state": State.UNCERTAIN if each.response is None else State.COMPLETED,
            "decision": None,
            "claim_token": secrets.token_hex(16),
            "http_status": each.http_status,
            "responded_at": to_microseconds(each.responded_at),
            "latency_ms": None,
            "response": each.response,
            "error": each.error,
            "sent": each.sent,
            "updated_at": time,
        }
        key = each.submission_id
        if key in known:
            connection.execute(update(submissions).where(submissions.c.submission_id == key).values(row))
        else:
            connection.execute(insert(submissions).values(submission_id=key, **row))
        connection.execute(
            insert(attempts).values(
                submission_id=key,
                number=numbers.get(key, 0) + 1,
                token=row["claim_token"],
                run_id=_UNKNOWN_RUN,
                started_at=time,
                ended_at=time,
                result=AttemptResult.RESPONDED if each.response else AttemptResult.MAYBE_PROCESSED,
                http_status=each.http_status,
                billable=1,
                error=each.error,
                sent=each.sent,
            )
        )
    return len(news)


def _judge(connection: Connection, judgements: Sequence[Judgement]) -> None:
    if not judgements:
        return
    time = now()
    billed = [{"key": each.submission_id} for each in judgements if each.state in _BILLED]
    if billed:
        connection.execute(_BILL_NEWEST, billed)
    connection.execute(
        _JUDGE,
        [
            {
                "key": judgement.submission_id,
                "partition_date": judgement.partition_date,
                "content_sha256": judgement.content_sha256,
                "of_date": judgement.partition_date,
                "to_state": judgement.state,
                "error": judgement.error,
                "updated_at": time,
            }
            for judgement in judgements
        ],
    )


_BILLED: Final = (State.UNCERTAIN, State.TURNED_AWAY)
_JUDGE: Final = (
    update(submissions)
    .where(
        submissions.c.submission_id == bindparam("key"),
        or_(
            submissions.c.state == State.TURNED_AWAY,
            and_(submissions.c.state == State.UNCERTAIN, _to_state == State.UNCERTAIN),
        ),
        # It may have been sent for another day since.
        or_(_to_state != State.FAILED, submissions.c.partition_date == bindparam("of_date")),
    )
    .values(state=_to_state)
)
