"""The ledger: which submission was sent, what came of it, and what it may have cost.

Every change of a submission's state is a method here, and each is one transaction. What they keep true:

* A submission is *claimed* before it is sent, and only the holder of its partition's lease can claim.
* A claim leaves `claimed` by a recorded result, or becomes `uncertain`; it never becomes "not sent".
* `completed` is final. `refused` and `quarantined` are never claimed again. `uncertain` is claimed again
  only if an operator or the policy said so. `failed` (surely not processed) may be claimed again, with
  the date and content that the submission has by then; what may have been sent keeps its own.
* A result of a call that was made is always taken, even if the lease was lost meanwhile: it is the truth.
* Every method can be repeated with the same arguments to the same effect, since after a lost connection
  nobody knows whether the last commit took place.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self

from sqlalchemy import (
    BigInteger,
    Connection,
    Float,
    Integer,
    String,
    Text,
    bindparam,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.ledger.database import BUSY_TIMEOUT_SECONDS, Database, LedgerError
from kyc_pipeline.ledger.process import ProcessIdentity
from kyc_pipeline.ledger.rows import Prepared, Rows
from kyc_pipeline.ledger.schema import (
    ERASED_CONTENT,
    Decision,
    State,
    attempts,
    decisions,
    leases,
    submissions,
)
from kyc_pipeline.vocabulary import Outcome

__all__ = ["Ledger", "LedgerError", "PartitionBusy"]

LEASE_SECONDS: Final = 60.0
"""How long a lease lives without renewal."""
INTERRUPTED: Final = "the run that sent it ended before the answer was recorded"
_IDS_PER_QUERY: Final = 5000
_STATES: Final = {state.value: state for state in State}
_DECISIONS: Final[dict[str | None, Decision | None]] = {None: None} | {
    choice.value: choice for choice in Decision
}
_OUTCOMES: Final = {
    state: Outcome.UNCERTAIN if state is State.CLAIMED else Outcome(state.value) for state in State
}
_RESPONSE_COLUMNS: Final = (
    "http_status",
    "requested_at",
    "responded_at",
    "latency_ms",
    "response",
    "error",
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class PartitionBusy(KycError):
    """Another run has the partition's lease."""


class AttemptResult(StrEnum):
    """What came of one call."""

    ANSWERED = "answered"
    REFUSED = "refused"
    CONTRACT_BROKEN = "contract_broken"
    NOT_PROCESSED = "not_processed"
    MAYBE_PROCESSED = "maybe_processed"
    ACCESS_DENIED = "access_denied"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to claim submissions of one partition."""

    partition_date: str
    token: str
    run_id: str
    recovered: int = 0
    """Open claims of an earlier holder that became uncertain."""


@dataclass(slots=True)
class Claim:
    """The intent to send one submission once. `resend` lets it be sent although it is uncertain."""

    submission_id: str
    content_sha256: str
    resend: bool = False
    token: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass(slots=True)
class Result:
    """What came of a claim. `response` is the submission's answer, `body` that of a failed call."""

    claim: Claim
    state: State
    result: AttemptResult
    billable: bool
    http_status: int | None = None
    requested_at: datetime | None = None
    responded_at: datetime | None = None
    latency_ms: float | None = None
    response: str | None = field(default=None, repr=False)
    body: str | None = field(default=None, repr=False)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Adoption:
    """A record that a look-up found for an uncertain submission."""

    submission_id: str
    http_status: int
    responded_at: datetime
    response: str = field(repr=False)
    error: str | None = None


class Entry(NamedTuple):
    """What the ledger knows of a submission, without its answer. A tuple, since there may be 100,000."""

    submission_id: str
    partition_date: str
    content_sha256: str
    state: State
    decision: Decision | None
    updated_at: int

    @property
    def held(self) -> bool:
        """Whether it waits for a decision."""
        return self.state is State.UNCERTAIN and self.decision is None

    @property
    def outcome(self) -> Outcome:
        """The outcome; a claim without a result counts as uncertain."""
        return _OUTCOMES[self.state]


@dataclass(frozen=True, slots=True)
class HeldSubmission:
    """An uncertain submission that waits for an operator's decision."""

    submission_id: str
    partition_date: str
    attempts: int
    last_sent_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Spend:
    """What a partition has cost as far as the ledger knows."""

    calls: int
    billable_calls: int


class Ledger:
    """The ledger at a SQLAlchemy URL. Opened, created and migrated at the first use; thread-safe.

    Every method raises :class:`LedgerError` where the database cannot be used.
    """

    def __init__(
        self, url: str, *, lease_seconds: float = LEASE_SECONDS, busy_timeout: float = BUSY_TIMEOUT_SECONDS
    ) -> None:
        self.database = Database(url, busy_timeout=busy_timeout)
        self.lease_seconds = lease_seconds

    def __repr__(self) -> str:
        return f"Ledger({self.database.name!r})"

    def exists(self) -> bool:
        """Whether the ledger has been made. Creates nothing."""
        return self.database.exists()

    def close(self) -> None:
        """Closes the connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- leases ---------------------------------------------------------------------------------------

    def acquire(self, partition_date: str, run_id: str) -> Lease:
        """Takes the partition's lease; what an earlier holder left open becomes uncertain.

        Raises :class:`PartitionBusy` with the holder's name while another run has it. A holder that is
        surely dead (same machine, its process gone) has it no longer.
        """
        lease = Lease(partition_date, secrets.token_hex(16), run_id)
        with self.database.write() as connection:
            self._take_lease(connection, lease)
            recovered = self._lose_open_claims(connection, partition_date)
        return Lease(partition_date, lease.token, run_id, recovered)

    def _take_lease(self, connection: Connection, lease: Lease) -> None:
        me = ProcessIdentity.current()
        now = self.database.now(connection)
        values = {
            "token": lease.token,
            "machine": me.machine,
            "host": me.host,
            "pid": me.pid,
            "pid_started": me.started,
            "run_id": lease.run_id,
            "acquired_at": now,
            "expires_at": now + self._lease_microseconds,
        }
        # One statement, so that of two processes only one inserts; the other one waits and sees its row.
        new = _insert_if_absent(connection, partition_date=lease.partition_date, **values)
        if new:
            return
        row = connection.execute(
            select(leases).where(leases.c.partition_date == lease.partition_date).with_for_update()
        ).one_or_none()
        if row is not None:
            holder = ProcessIdentity(row.machine, row.host, row.pid, row.pid_started)
            if row.expires_at > self.database.now(connection) and not holder.is_surely_dead():
                raise PartitionBusy(
                    f"partition {lease.partition_date} is being worked on by run {row.run_id} "
                    f"(process {row.pid} on {row.host}): wait for it to end"
                )
            connection.execute(
                update(leases).where(leases.c.partition_date == lease.partition_date).values(**values)
            )
        elif not _insert_if_absent(connection, partition_date=lease.partition_date, **values):
            raise PartitionBusy(f"partition {lease.partition_date} was just taken by another run: try again")

    @property
    def _lease_microseconds(self) -> int:
        return int(self.lease_seconds * 1_000_000)

    def renew(self, lease: Lease) -> bool:
        """Prolongs the lease; False if another run has taken it."""
        with self.database.write() as connection:
            changed = connection.execute(
                update(leases)
                .where(leases.c.partition_date == lease.partition_date, leases.c.token == lease.token)
                .values(expires_at=self.database.now(connection) + self._lease_microseconds)
            )
            return bool(changed.rowcount)

    def release(self, lease: Lease) -> int:
        """Ends the lease; claims that are still open become uncertain. Returns how many."""
        with self.database.write() as connection:
            if not self._holds(connection, lease):
                return 0
            lost = self._lose_open_claims(connection, lease.partition_date)
            connection.execute(leases.delete().where(leases.c.token == lease.token))
            return lost

    def lose_open_claims(self, lease: Lease) -> int:
        """Makes the partition's open claims uncertain: of a run whose calls have all ended."""
        with self.database.write() as connection:
            return (
                self._lose_open_claims(connection, lease.partition_date)
                if self._holds(connection, lease)
                else 0
            )

    def _holds(self, connection: Connection, lease: Lease) -> bool:
        token = _HOLDER(connection, {"date": lease.partition_date}).scalar_one_or_none()
        return bool(token == lease.token)

    def _lose_open_claims(self, connection: Connection, partition_date: str) -> int:
        return connection.execute(
            update(submissions)
            .where(submissions.c.partition_date == partition_date, submissions.c.state == State.CLAIMED)
            .values(state=State.UNCERTAIN, decision=None, error=INTERRUPTED, updated_at=_now())
        ).rowcount

    # --- claims and results ---------------------------------------------------------------------------

    def commit(
        self, lease: Lease, claims: Sequence[Claim], results: Sequence[Result | Adoption]
    ) -> frozenset[str]:
        """Records results, then makes claims, in one transaction. Returns the tokens of the claims won.

        No claim is won once the lease is lost. A claim is lost if the submission is in a state that may
        not be sent, or may have been sent with another date or content.
        """
        with self.database.write() as connection:
            _record(connection, [result for result in results if isinstance(result, Result)])
            _adopt(connection, [result for result in results if isinstance(result, Adoption)])
            if not claims or not self._holds(connection, lease):
                return frozenset()
            return _claim(connection, lease, claims)

    # --- reading --------------------------------------------------------------------------------------

    def entries(self, submission_ids: Sequence[str]) -> dict[str, Entry]:
        """What is known of these submissions, by id; ids never seen are left out."""
        found: dict[str, Entry] = {}
        with self.database.read() as connection:
            for ids in _chunks(submission_ids):
                for row in _ENTRIES(connection, Rows.given((key,) for key in ids)).all():
                    found[row[0]] = _entry(*row)
        return found

    def responses(self, submission_ids: Sequence[str]) -> dict[str, tuple[Entry, dict[str, Any]]]:
        """Entry and columns for the lake's `verification_responses`, by id; ids never seen are left out.

        Times are microseconds since the epoch, as Arrow has them too.
        """
        found: dict[str, tuple[Entry, dict[str, Any]]] = {}
        with self.database.read() as connection:
            for ids in _chunks(submission_ids):
                for row in _RESPONSES(connection, Rows.given((key,) for key in ids)).all():
                    submission_id, date, content, state, decision, updated_at, *values, calls, billable = row
                    response = dict(zip(_RESPONSE_COLUMNS, values, strict=True))
                    response["attempts"] = calls
                    response["billable_calls"] = int(billable)
                    entry = _entry(submission_id, date, content, state, decision, updated_at)
                    found[submission_id] = entry, response
        return found

    def outcomes(self, partition_date: str) -> Iterator[Sequence[tuple[str, Outcome]]]:
        """Every submission that is known under this date, with its outcome; a few thousand at a time."""
        query = select(submissions.c.submission_id, submissions.c.state).where(
            submissions.c.partition_date == partition_date, submissions.c.content_sha256 != ERASED_CONTENT
        )
        with self.database.read() as connection:
            rows = connection.execution_options(yield_per=_IDS_PER_QUERY).execute(query)
            for part in rows.partitions():
                yield [(row[0], _OUTCOMES[_STATES[row[1]]]) for row in part]

    def spend(self, partition_date: str) -> Spend:
        """What the partition's calls, over all runs, amount to."""
        query = (
            select(func.count(), func.coalesce(func.sum(attempts.c.billable), 0))
            .select_from(attempts.join(submissions))
            .where(submissions.c.partition_date == partition_date)
        )
        with self.database.read() as connection:
            calls, billable = connection.execute(query).one()
        return Spend(int(calls), int(billable))

    def held(self, partition_date: str | None = None) -> list[HeldSubmission]:
        """Uncertain submissions that wait for a decision, oldest partition first."""
        query = (
            select(submissions, func.count(attempts.c.number), func.max(attempts.c.started_at))
            .outerjoin(attempts, attempts.c.submission_id == submissions.c.submission_id)
            .where(submissions.c.state == State.UNCERTAIN, submissions.c.decision.is_(None))
            .group_by(submissions.c.submission_id)
            .order_by(submissions.c.partition_date, submissions.c.submission_id)
        )
        if partition_date is not None:
            query = query.where(submissions.c.partition_date == partition_date)
        with self.database.read() as connection:
            return [
                HeldSubmission(
                    row.submission_id, row.partition_date, row[-2], _to_datetime(row[-1]), row.error
                )
                for row in connection.execute(query)
            ]

    def decide(self, submission_id: str, decision: Decision, who: str) -> None:
        """Records an operator's decision about an uncertain submission; the newest one counts.

        Raises :class:`UsageError` for a submission that is unknown or not uncertain.
        """
        with self.database.write() as connection:
            state = connection.execute(
                select(submissions.c.state)
                .where(submissions.c.submission_id == submission_id)
                .with_for_update()
            ).scalar_one_or_none()
            if state is None:
                raise UsageError(f"submission {submission_id} is not in the ledger: see `held list`")
            if state != State.UNCERTAIN:
                raise UsageError(f"submission {submission_id} is {state}, not held: nothing to decide")
            now = _now()
            connection.execute(
                update(submissions)
                .where(submissions.c.submission_id == submission_id)
                .values(decision=decision, updated_at=now)
            )
            connection.execute(
                insert(decisions).values(
                    submission_id=submission_id, decision=decision, decided_by=who[:255], decided_at=now
                )
            )


# The statements of every commit, and those over a whole partition, are prepared.
_ASKED = Rows(submission_id=String())
_IS_ASKED = submissions.c.submission_id.in_(select(_ASKED["submission_id"]))
_ENTRIES = Prepared(select(*(submissions.c[name] for name in Entry._fields)).where(_IS_ASKED))
_RESPONSES = Prepared(
    select(
        *(submissions.c[name] for name in (*Entry._fields, *_RESPONSE_COLUMNS)),
        func.count(attempts.c.number),
        func.coalesce(func.sum(attempts.c.billable), 0),
    )
    .outerjoin(attempts, attempts.c.submission_id == submissions.c.submission_id)
    .where(_IS_ASKED)
    .group_by(submissions.c.submission_id)
)
_HOLDER = Prepared(
    select(leases.c.token).where(leases.c.partition_date == bindparam("date")).with_for_update()
)
_KNOWN = Prepared(
    select(
        *(
            submissions.c[name]
            for name in (
                "submission_id",
                "partition_date",
                "content_sha256",
                "state",
                "decision",
                "claim_token",
            )
        )
    )
    .where(_IS_ASKED)
    .order_by(submissions.c.submission_id)
    .with_for_update()
)


def _claim(connection: Connection, lease: Lease, claims: Sequence[Claim]) -> frozenset[str]:
    """The claims that may be made, made.

    The lease's row is locked, so nobody else claims for this date; the submissions' own rows are locked
    (in one order, against deadlocks), since a failed one may be claimed for another date.
    """
    ids = [claim.submission_id for claim in claims]
    known = {row.submission_id: row for row in _KNOWN(connection, Rows.given((key,) for key in ids))}
    numbers: dict[str, int] = {}
    if known:
        numbers = {
            row[0]: row[1]
            for row in connection.execute(
                select(attempts.c.submission_id, func.max(attempts.c.number))
                .where(attempts.c.submission_id.in_(list(known)))
                .group_by(attempts.c.submission_id)
            )
        }
    now = _now()
    won: set[str] = set()
    taken: set[str] = set()
    new: list[tuple[Any, ...]] = []
    again: list[dict[str, Any]] = []
    started: list[tuple[Any, ...]] = []
    for claim in claims:
        row = known.get(claim.submission_id)
        if row is not None and row.state == State.CLAIMED and row.claim_token == claim.token:
            won.add(claim.token)  # an earlier commit of this very claim took place after all
            continue
        if claim.submission_id in taken or not (row is None or _may_be_sent(row, lease, claim)):
            continue
        if row is None:
            new.append((claim.submission_id, lease.partition_date, claim.content_sha256, claim.token, now))
        else:
            again.append(
                {"new_id": claim.submission_id, "new_token": claim.token, "new_now": now}
                | {"new_date": lease.partition_date, "new_content": claim.content_sha256}
            )
        taken.add(claim.submission_id)
        won.add(claim.token)
        number = numbers.get(claim.submission_id, 0) + 1
        started.append((claim.submission_id, number, claim.token, lease.run_id, now))
    if new:
        _INSERT_CLAIMS(connection, Rows.given(new))
    if again:
        connection.execute(_UPDATE_CLAIM, again)
    if started:
        _INSERT_ATTEMPTS(connection, Rows.given(started))
    return frozenset(won)


def _may_be_sent(row: Any, lease: Lease, claim: Claim) -> bool:
    if row.state == State.FAILED:
        return True
    same = row.partition_date == lease.partition_date and row.content_sha256 == claim.content_sha256
    return bool(same and row.state == State.UNCERTAIN and claim.resend and row.decision != Decision.ABANDON)


_NEW = Rows(
    submission_id=String(),
    partition_date=String(),
    content_sha256=String(),
    claim_token=String(),
    now=BigInteger(),
)
_INSERT_CLAIMS = Prepared(
    insert(submissions).from_select(
        [*_NEW.names[:-1], "state", "requested_at", "updated_at"],
        select(
            *(_NEW[name] for name in _NEW.names[:-1]), literal(State.CLAIMED.value), _NEW["now"], _NEW["now"]
        ),
    )
)
# What the last attempt left is cleared, its decision apart: that stays until a result settles it.
_UPDATE_CLAIM = (
    update(submissions)
    .where(submissions.c.submission_id == bindparam("new_id"))
    .values(
        partition_date=bindparam("new_date"),
        content_sha256=bindparam("new_content"),
        state=State.CLAIMED,
        claim_token=bindparam("new_token"),
        http_status=None,
        requested_at=bindparam("new_now"),
        responded_at=None,
        latency_ms=None,
        error=None,
        updated_at=bindparam("new_now"),
    )
)
_STARTED = Rows(
    submission_id=String(), number=Integer(), token=String(), run_id=String(), started_at=BigInteger()
)
_INSERT_ATTEMPTS = Prepared(
    insert(attempts).from_select(
        [*_STARTED.names, "billable"], select(*(_STARTED[name] for name in _STARTED.names), literal(1))
    )
)


def _record(connection: Connection, results: Sequence[Result]) -> None:
    now = _now()
    for part in _one_each(results):
        _END_ATTEMPTS(
            connection,
            Rows.given(
                (
                    result.claim.submission_id,
                    result.claim.token,
                    now,
                    result.result,
                    result.http_status,
                    result.latency_ms,
                    int(result.billable),
                    result.error,
                    result.body,
                )
                for result in part
            ),
        )
        # An answer is true whoever holds the claim now; anything less counts only for the newest claim.
        for statement, chosen in (
            (_SETTLE, [result for result in part if result.state in _SETTLING]),
            (_SET_STATE, [result for result in part if result.state not in _SETTLING]),
        ):
            if chosen:
                statement(
                    connection,
                    Rows.given(
                        (
                            result.claim.submission_id,
                            result.claim.token,
                            now,
                            result.state,
                            int(result.result in _KEEPS_DECISION),
                            result.http_status,
                            _to_microseconds(result.requested_at),
                            _to_microseconds(result.responded_at),
                            result.latency_ms,
                            result.response,
                            result.error,
                        )
                        for result in chosen
                    ),
                )


def _one_each(results: Sequence[Result]) -> Iterator[list[Result]]:
    """The results in parts, in their order, none of which has a submission twice: one statement sees a
    submission once."""
    while results:
        part: dict[str, Result] = {}
        for result in results:
            if result.claim.submission_id in part:
                break
            part[result.claim.submission_id] = result
        yield list(part.values())
        results = results[len(part) :]


def _adopt(connection: Connection, adoptions: Sequence[Adoption]) -> None:
    if adoptions:
        now = _now()
        connection.execute(
            _ADOPT,
            [
                {
                    "new_id": adoption.submission_id,
                    "new_now": now,
                    "new_status": adoption.http_status,
                    "new_responded": _to_microseconds(adoption.responded_at),
                    "new_response": adoption.response,
                    "new_error": adoption.error,
                }
                for adoption in adoptions
            ],
        )


_SETTLING: Final = frozenset({State.COMPLETED, State.QUARANTINED})
_KEEPS_DECISION: Final = frozenset({AttemptResult.NOT_PROCESSED, AttemptResult.ACCESS_DENIED})

_ENDED = Rows(
    submission_id=String(),
    token=String(),
    ended_at=BigInteger(),
    result=String(),
    http_status=Integer(),
    latency_ms=Float(),
    billable=Integer(),
    error=Text(),
    body=Text(),
)
_END_ATTEMPTS = Prepared(
    update(attempts)
    .where(
        attempts.c.submission_id == _ENDED["submission_id"],
        attempts.c.token == _ENDED["token"],
        attempts.c.ended_at.is_(None),
    )
    .values({name: _ENDED[name] for name in _ENDED.names[2:]})
)
_SETTLED = Rows(
    submission_id=String(),
    token=String(),
    updated_at=BigInteger(),
    state=String(),
    keep=Integer(),
    http_status=Integer(),
    requested_at=BigInteger(),
    responded_at=BigInteger(),
    latency_ms=Float(),
    response=Text(),
    error=Text(),
)
_NEW_STATE = {name: _SETTLED[name] for name in _SETTLED.names if name in submissions.c} | {
    "requested_at": func.coalesce(_SETTLED["requested_at"], submissions.c.requested_at)
}
del _NEW_STATE["submission_id"]
_SETTLE = Prepared(
    update(submissions)
    .where(submissions.c.submission_id == _SETTLED["submission_id"], submissions.c.state != State.COMPLETED)
    .values(decision=None, **_NEW_STATE)
)
_SET_STATE = Prepared(
    update(submissions)
    .where(
        submissions.c.submission_id == _SETTLED["submission_id"],
        submissions.c.claim_token == _SETTLED["token"],
        or_(submissions.c.state == State.CLAIMED, submissions.c.state == State.UNCERTAIN),
    )
    .values(decision=case((_SETTLED["keep"] == 1, submissions.c.decision), else_=None), **_NEW_STATE)
)
# The call's own times stay: those of the look-up say nothing about it.
_ADOPT = (
    update(submissions)
    .where(submissions.c.submission_id == bindparam("new_id"), submissions.c.state == State.UNCERTAIN)
    .values(
        state=State.COMPLETED,
        decision=None,
        http_status=bindparam("new_status"),
        responded_at=bindparam("new_responded"),
        latency_ms=None,
        response=bindparam("new_response"),
        error=bindparam("new_error"),
        updated_at=bindparam("new_now"),
    )
)


def _entry(
    submission_id: str, date: str, content: str, state: str, decision: str | None, updated_at: int
) -> Entry:
    return Entry(submission_id, date, content, _STATES[state], _DECISIONS[decision], updated_at)


def _insert_if_absent(connection: Connection, **values: Any) -> bool:
    """Inserts a lease; False if the partition has one. The primary key decides between two processes."""
    try:
        with connection.begin_nested():
            connection.execute(insert(leases).values(**values))
    except IntegrityError:
        return False
    return True


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _IDS_PER_QUERY):
        yield ids[start : start + _IDS_PER_QUERY]


def _now() -> int:
    return time.time_ns() // 1000


def _to_microseconds(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH) // timedelta(microseconds=1)


def _to_datetime(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)
