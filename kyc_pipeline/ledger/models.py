"""The types that the ledger's functions take and return. No SQL."""

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

from kyc_pipeline.vocabulary import Outcome


class State(StrEnum):
    """Where a submission stands: see `outcome_of`."""

    CLAIMED = "claimed"
    """The intent to send is recorded, but no result yet: the call may be in flight."""
    COMPLETED = "completed"
    REFUSED = "refused"
    QUARANTINED = "quarantined"
    UNCERTAIN = "uncertain"
    FAILED = "failed"
    TURNED_AWAY = "turned_away"
    """The whole request was sent, and the response asks for a retry (408, 425, 429, 503) or denies access
    (401 to 405). Probably it was not processed: look it up before sending it again."""


class Decision(StrEnum):
    """What an operator, or `DEEPXL_UNCERTAIN=retry`, decided about a submission."""

    RETRY = "retry"
    """Look it up once more, and send it again if it is not found."""
    ABANDON = "abandon"
    """Never send it again. Its state stays `uncertain`; its outcome is `abandoned`."""
    REOPEN = "reopen"
    """A refused or quarantined one is uncertain again, with `retry`. Only in the history of decisions."""


class AttemptResult(StrEnum):
    """The result of one call."""

    RESPONDED = "answered"
    """There is a sound response. The stored value keeps the former name."""
    REFUSED = "refused"
    CONTRACT_BROKEN = "contract_broken"
    NOT_SENT = "not_sent"
    """Not a byte left: a claim, but no call."""
    NOT_PROCESSED = "not_processed"
    TURNED_AWAY = "turned_away"
    MAYBE_PROCESSED = "maybe_processed"
    ACCESS_DENIED = "access_denied"


_OTHER_OUTCOMES: Final = {State.CLAIMED: Outcome.UNCERTAIN, State.TURNED_AWAY: Outcome.FAILED}
_OUTCOMES: Final = {state: _OTHER_OUTCOMES.get(state) or Outcome(state.value) for state in State}


def outcome_of(state: State, decision: Decision | None) -> Outcome:
    """The outcome of a submission; a claim without a result counts as uncertain."""
    if state is State.UNCERTAIN and decision is Decision.ABANDON:
        return Outcome.ABANDONED
    return _OUTCOMES[state]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to claim submissions of one partition."""

    partition_date: str
    token: str
    run_id: str


@dataclass(slots=True)
class Claim:
    """The intent to send one submission once."""

    submission_id: str
    content_sha256: str
    resend: bool = False
    """A look-up has just shown that there is no record of it: it may be sent even if it was turned away, or
    is uncertain and a decision allows it."""
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    by_policy: bool = False
    """Whether `DEEPXL_UNCERTAIN=retry` allows it, which it does once for each submission."""
    sent: str | None = field(default=None, repr=False)
    """What is sent, if that is less than the submission: see `lake/sent.py`. Other classes have it, too."""


@dataclass(slots=True)
class ClaimResult:
    """The result of a claim. `response` is the accepted response, `body` that of a failed call."""

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
    """A record that a look-up found for a submission without a sound response."""

    submission_id: str
    partition_date: str
    content_sha256: str
    http_status: int
    responded_at: datetime
    response: str = field(repr=False)
    error: str | None = None
    sent: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Discovery:
    """A record that a look-up found for a submission that the ledger does not know, or knows as failed.

    With a `response` the submission is completed; without one it is held, and `error` says why.
    """

    submission_id: str
    content_sha256: str
    http_status: int
    responded_at: datetime
    response: str | None = field(repr=False)
    error: str | None = None
    sent: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A conclusion about a call that is already recorded.

    A turned-away submission becomes `uncertain` (a look-up could not tell) or `refused` (others succeeded).
    An uncertain one stays so; `error` says why it is held. A withdrawn one becomes `failed`; but if DeepXL
    has a record of it, it stays `turned_away` and counts as billed.
    """

    submission_id: str
    partition_date: str
    content_sha256: str
    state: State
    error: str


Settlement: TypeAlias = ClaimResult | Adoption | Discovery | Judgement
"""What a run records of a submission after its claim or a look-up."""


class Entry(NamedTuple):
    """A submission's row without its response. A tuple to save memory: there may be 100,000."""

    submission_id: str
    partition_date: str
    content_sha256: str
    state: State
    decision: Decision | None
    updated_at: int
    """Microseconds since the epoch."""
    calls_in_doubt: int = 0
    """Its calls that may have been billed; counted only while it is uncertain or claimed."""

    @property
    def held(self) -> bool:
        """Whether it waits for a decision."""
        return self.state is State.UNCERTAIN and self.decision is None

    @property
    def outcome(self) -> Outcome:
        """The outcome of its state and decision."""
        return outcome_of(self.state, self.decision)


@dataclass(frozen=True, slots=True)
class HeldSubmission:
    """An uncertain submission that waits for an operator's decision."""

    submission_id: str
    partition_date: str
    attempts: int
    """Calls."""
    last_sent_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class HeldDay:
    """The held submissions of a partition."""

    partition_date: str
    submissions: int
    since: datetime
    """Since when the oldest one is held."""


@dataclass(frozen=True, slots=True)
class Spend:
    """The calls of a partition over all runs, or of some runs over all partitions."""

    calls: int
    billable_calls: int
    retries: int = 0
    """Calls after the first one of each submission."""
