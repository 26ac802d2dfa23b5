"""The ledger under any order of claims, crashes, take-overs, look-ups and decisions (a state machine)."""

import itertools
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kyc_pipeline.errors import UsageError
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.decisions import list_held, reopen, resolve_held
from kyc_pipeline.ledger.leases import acquire_lease
from kyc_pipeline.ledger.models import (
    Adoption,
    AttemptResult,
    Claim,
    ClaimResult,
    Decision,
    Entry,
    Judgement,
    Lease,
    State,
)
from kyc_pipeline.ledger.queries import read_entries, read_responses
from kyc_pipeline.ledger.schema import attempts, calls_of_days
from tests.effort import tries

DATES = ("2024-09-01", "2024-09-02")
IDS = ("a", "b", "c")
CONTENTS = ("content", "changed")
NOW = datetime(2024, 9, 1, tzinfo=UTC)


class LedgerMachine(RuleBasedStateMachine):
    """A model beside the ledger: what was really sent, and what the server really did."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        # Leases expire at once, so that any run can be taken over at any time.
        self.ledger = Ledger(f"sqlite:///{Path(self.folder.name) / 'l.sqlite'}", lease_seconds=0)
        self.numbers = itertools.count()
        self.leases = {date: [acquire_lease(self.ledger, date, "run")] for date in DATES}
        self.sent = dict.fromkeys(IDS, 0)
        self.not_sent = dict.fromkeys(IDS, 0)
        self.sent_as: dict[str, set[tuple[str, str]]] = {key: set() for key in IDS}
        """Dates and contents of the calls that may have been processed."""
        self.processed = dict.fromkeys(IDS, 0)
        self.allowed = dict.fromkeys(IDS, 0)
        """Second calls that an operator or the policy allowed."""
        self.by_policy = dict.fromkeys(IDS, 0)
        self.settled: dict[str, str] = {}

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()

    def entry(self, submission_id: str) -> Entry | None:
        return read_entries(self.ledger, [submission_id]).get(submission_id)

    def state_of(self, submission_id: str) -> State | None:
        entry = self.entry(submission_id)
        return entry.state if entry else None

    def lease(self, date: str, stale: bool) -> Lease:
        return self.leases[date][0 if stale else -1]

    @rule(
        target=calls,
        submission_id=st.sampled_from(IDS),
        date=st.sampled_from(DATES),
        content=st.sampled_from(CONTENTS),
        stale=st.booleans(),
        resend=st.booleans(),
        by_policy=st.booleans(),
    )
    def claim_and_send(
        self, submission_id: str, date: str, content: str, stale: bool, resend: bool, by_policy: bool
    ) -> tuple[Claim, str] | None:
        lease = self.lease(date, stale)
        before = self.entry(submission_id)
        # A claim with `resend` follows a look-up that found nothing, and the history does not lie here.
        resend = resend and not self.processed[submission_id]
        claim = Claim(submission_id, content, resend, by_policy=by_policy)
        won = claim.token in commit(self.ledger, lease, [claim], [])
        may = (
            before is None
            or before.state is State.FAILED
            or (before.state is State.TURNED_AWAY and resend)
            or (
                before.state is State.UNCERTAIN
                and resend
                and (
                    before.decision is Decision.RETRY
                    or (before.decision is None and by_policy and before.calls_in_doubt <= 1)
                )
                and (before.partition_date, before.content_sha256) == (date, content)
            )
        )
        assert won == (may and lease is self.leases[date][-1])
        if not won:
            assert self.entry(submission_id) == before
            return None
        self.sent[submission_id] += 1
        if before is not None and before.state is State.UNCERTAIN:
            self.allowed[submission_id] += 1
            if before.decision is None:
                self.by_policy[submission_id] += 1
        return claim, date

    @rule(
        call=consumes(calls),
        what=st.sampled_from([*AttemptResult, None]),
        processed=st.booleans(),
        stale=st.booleans(),
        twice=st.booleans(),
    )
    def end(
        self,
        call: tuple[Claim, str] | None,
        what: AttemptResult | None,
        processed: bool,
        stale: bool,
        twice: bool,
    ) -> None:
        if call is None:
            return
        claim, date = call
        surely_not = (AttemptResult.NOT_SENT, AttemptResult.NOT_PROCESSED, AttemptResult.REFUSED)
        turned_away = (AttemptResult.TURNED_AWAY, AttemptResult.ACCESS_DENIED)
        if what in (AttemptResult.RESPONDED, AttemptResult.CONTRACT_BROKEN):
            processed = True
        elif what in surely_not:
            processed = False
        self.processed[claim.submission_id] += processed
        if processed or what not in (*surely_not, *turned_away):
            self.sent_as[claim.submission_id].add((date, claim.content_sha256))
        if what is None:  # the process died: nothing is recorded
            return
        self.not_sent[claim.submission_id] += what is AttemptResult.NOT_SENT
        state = {
            AttemptResult.RESPONDED: State.COMPLETED,
            AttemptResult.CONTRACT_BROKEN: State.QUARANTINED,
            AttemptResult.REFUSED: State.REFUSED,
            AttemptResult.MAYBE_PROCESSED: State.UNCERTAIN,
        }.get(what, State.TURNED_AWAY if what in turned_away else State.FAILED)
        billable = what not in (*surely_not, *turned_away)
        result = ClaimResult(claim, state, what, billable, response=f"response {claim.token}")
        in_doubt = self.in_doubt(claim)
        for _ in range(2 if twice else 1):
            commit(self.ledger, self.lease(date, stale), [], [result])
        if state is State.COMPLETED:
            assert self.state_of(claim.submission_id) is State.COMPLETED
            self.settled.setdefault(claim.submission_id, f"response {claim.token}")
        elif in_doubt:
            assert self.state_of(claim.submission_id) in (State.UNCERTAIN, State.CLAIMED, State.COMPLETED)

    def in_doubt(self, claim: Claim) -> bool:
        """Whether another call of the submission may have been billed."""
        query = sa.select(attempts.c.number).where(
            attempts.c.submission_id == claim.submission_id,
            attempts.c.token != claim.token,
            attempts.c.billable == 1,
        )
        with self.ledger.read() as connection:
            return connection.execute(query).first() is not None

    @rule(date=st.sampled_from(DATES))
    def take_over(self, date: str) -> None:
        """The holder is gone: its open claims become uncertain, and none becomes unsent."""
        before = {key: self.entry(key) for key in IDS}
        open_before = {
            key
            for key, entry in before.items()
            if entry and entry.state is State.CLAIMED and entry.partition_date == date
        }
        self.leases[date].append(acquire_lease(self.ledger, date, f"run-{next(self.numbers)}"))
        assert all(self.state_of(key) is State.UNCERTAIN for key in open_before)
        assert all(self.entry(key) == before[key] for key in IDS if key not in open_before)

    @rule(submission_id=st.sampled_from(IDS))
    def look_up(self, submission_id: str) -> None:
        """Adopts a record if the server has one."""
        if not self.processed[submission_id]:
            return
        before = self.state_of(submission_id)
        entry = self.entry(submission_id)
        assert entry is not None
        found = Adoption(submission_id, *entry[1:3], 200, NOW, f"found {submission_id}")
        commit(self.ledger, self.leases[DATES[0]][-1], [], [found])
        if before in (State.UNCERTAIN, State.TURNED_AWAY, State.QUARANTINED):
            self.settled.setdefault(submission_id, f"found {submission_id}")
        else:
            assert self.state_of(submission_id) is before

    @rule(submission_id=st.sampled_from(IDS), state=st.sampled_from((State.UNCERTAIN, State.REFUSED)))
    def judge(self, submission_id: str, state: State) -> None:
        """A look-up could not tell, or others succeeded; only what was turned away is judged."""
        before = self.entry(submission_id)
        if before is None or (state is State.REFUSED and self.processed[submission_id]):
            return
        judgement = Judgement(submission_id, *before[1:3], state, "judged")
        commit(self.ledger, self.leases[DATES[0]][-1], [], [judgement])
        judged = before.state is State.TURNED_AWAY
        assert self.state_of(submission_id) is (state if judged else before.state)

    @rule(submission_id=st.sampled_from(IDS))
    def reopen(self, submission_id: str) -> None:
        before = self.state_of(submission_id)
        try:
            reopen(self.ledger, submission_id, "the address was wrong", "operator")
        except UsageError:
            assert before not in (State.REFUSED, State.QUARANTINED)
        else:
            assert before in (State.REFUSED, State.QUARANTINED)
            entry: Any = self.entry(submission_id)
            assert entry[3:5] == (State.UNCERTAIN, Decision.RETRY)

    @rule(submission_id=st.sampled_from(IDS), decision=st.sampled_from((Decision.RETRY, Decision.ABANDON)))
    def decide(self, submission_id: str, decision: Decision) -> None:
        uncertain = self.state_of(submission_id) is State.UNCERTAIN
        try:
            resolve_held(self.ledger, submission_id, decision, "operator")
        except UsageError:
            assert not uncertain
        else:
            assert uncertain
            assert submission_id not in {held.submission_id for held in list_held(self.ledger)}

    @invariant()
    def no_second_record_unless_allowed(self) -> None:
        for key in IDS:
            assert self.processed[key] <= 1 + self.allowed[key]
            assert self.by_policy[key] <= 1

    @invariant()
    def what_may_have_been_processed_has_one_date_and_content(self) -> None:
        for key in IDS:
            assert len(self.sent_as[key]) <= 1
            if self.sent_as[key]:
                assert read_entries(self.ledger, [key])[key][1:3] in self.sent_as[key]

    @invariant()
    def what_is_settled_stays(self) -> None:
        responses = read_responses(self.ledger, list(IDS))
        for key, response in self.settled.items():
            entry, row = responses[key]
            assert entry.state is State.COMPLETED
            assert row["response"] == response

    @invariant()
    def the_calls_of_the_days_are_counted(self) -> None:
        with self.ledger.read() as connection:
            (counted,) = connection.execute(sa.select(sa.func.sum(calls_of_days.c.calls))).one()
        assert (counted or 0) == sum(self.sent.values()) - sum(self.not_sent.values())

    @invariant()
    def nothing_sent_is_forgotten(self) -> None:
        responses = read_responses(self.ledger, list(IDS))
        for key in IDS:
            assert (key in responses) == (self.sent[key] > 0)
            if key in responses:
                assert responses[key][1]["attempts"] == self.sent[key] - self.not_sent[key]
                if responses[key][0].state is State.COMPLETED:
                    assert responses[key][1]["billable_calls"] >= 1


TestLedgerStates = LedgerMachine.TestCase
TestLedgerStates.settings = settings(
    max_examples=tries(15), stateful_step_count=25, deadline=None, derandomize=True, database=None
)
