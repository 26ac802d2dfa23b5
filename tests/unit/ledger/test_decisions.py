"""What an operator decides about held submissions, and what the history keeps of it."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from kyc_pipeline.errors import UsageError
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.decisions import dates_to_send_again, list_held, reopen, resolve_held
from kyc_pipeline.ledger.leases import acquire_lease, mark_open_claims_uncertain
from kyc_pipeline.ledger.models import (
    AttemptResult,
    Claim,
    ClaimResult,
    Decision,
    HeldSubmission,
    Lease,
    Spend,
    State,
)
from kyc_pipeline.ledger.queries import (
    earlier_attempts,
    read_entries,
    read_outcomes,
    read_responses,
    read_spend,
    read_spend_of_runs,
)
from kyc_pipeline.ledger.schema import ERASED_CONTENT, attempts, decisions, submissions
from kyc_pipeline.ledger.times import to_datetime
from kyc_pipeline.vocabulary import Outcome

DATE, NEXT = "2024-09-01", "2024-09-02"


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger(ledger_url) as opened:
        yield opened


@pytest.fixture
def lease(ledger: Ledger) -> Lease:
    return acquire_lease(ledger, DATE, "run")


def call(
    ledger: Ledger, lease: Lease, claim: Claim, state: State, result: AttemptResult, **more: Any
) -> None:
    """Claims and records one call."""
    assert commit(ledger, lease, [claim], []) == {claim.token}
    billable = result in (AttemptResult.RESPONDED, AttemptResult.MAYBE_PROCESSED)
    commit(ledger, lease, [], [ClaimResult(claim, state, result, billable, **more)])


def lose(ledger: Ledger, lease: Lease, *ids: str) -> None:
    for key in ids:
        call(ledger, lease, Claim(key, "c"), State.UNCERTAIN, AttemptResult.MAYBE_PROCESSED, error="lost")


def history(ledger: Ledger) -> list[tuple[Any, ...]]:
    columns = decisions.c.submission_id, decisions.c.decision, decisions.c.decided_by, decisions.c.reason
    with ledger.read() as connection:
        return [tuple(row) for row in connection.execute(sa.select(*columns).order_by(decisions.c.id))]


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (AttemptResult.NOT_PROCESSED, True),
        (AttemptResult.TURNED_AWAY, True),
        (AttemptResult.ACCESS_DENIED, True),
        (AttemptResult.REFUSED, False),
        (AttemptResult.CONTRACT_BROKEN, False),
        (AttemptResult.MAYBE_PROCESSED, False),
    ],
)
def test_a_decision_stays_until_the_call_that_it_allowed_may_have_been_made(
    ledger: Ledger, lease: Lease, result: AttemptResult, kept: bool
) -> None:
    lose(ledger, lease, "a")
    resolve_held(ledger, "a", "retry", "operator")
    call(ledger, lease, Claim("a", "c", resend=True), State.UNCERTAIN, result)
    assert read_entries(ledger, ["a"])["a"].decision is (Decision.RETRY if kept else None)
    again = Claim("a", "c", resend=True)
    assert commit(ledger, lease, [again], []) == ({again.token} if kept else set())


@pytest.mark.parametrize(
    ("state", "result", "outcome"),
    [
        (State.FAILED, AttemptResult.NOT_PROCESSED, Outcome.ABANDONED),
        (State.TURNED_AWAY, AttemptResult.TURNED_AWAY, Outcome.ABANDONED),
        (State.UNCERTAIN, AttemptResult.MAYBE_PROCESSED, Outcome.ABANDONED),
        (State.REFUSED, AttemptResult.REFUSED, Outcome.REFUSED),
        (State.COMPLETED, AttemptResult.RESPONDED, Outcome.COMPLETED),
    ],
)
def test_what_was_abandoned_is_not_sent_again_after_a_late_result(
    ledger: Ledger, lease: Lease, state: State, result: AttemptResult, outcome: Outcome
) -> None:
    """The run that had sent it was suspended, and another one had taken its lease."""
    claim = Claim("a", "c")
    commit(ledger, lease, [claim], [])
    assert mark_open_claims_uncertain(ledger, lease) == 1
    resolve_held(ledger, "a", "abandon", "operator")
    billable = result in (AttemptResult.RESPONDED, AttemptResult.MAYBE_PROCESSED)
    commit(ledger, lease, [], [ClaimResult(claim, state, result, billable)])
    assert read_entries(ledger, ["a"])["a"].outcome is outcome
    assert commit(ledger, lease, [Claim("a", "c", resend=True, by_policy=True)], []) == set()


def test_what_is_held_is_listed_with_its_calls(ledger: Ledger, lease: Lease) -> None:
    assert list_held(ledger) == []
    later = acquire_lease(ledger, NEXT, "run-2")
    lose(ledger, later, "a")
    lose(ledger, lease, "z", "b", "c")
    resolve_held(ledger, "c", "abandon", "operator")
    resolve_held(ledger, "b", "retry", "operator")
    commit(ledger, lease, [Claim("b", "c", resend=True)], [])
    assert mark_open_claims_uncertain(ledger, lease) == 1
    with ledger.read() as connection:
        query = sa.select(attempts.c.submission_id, sa.func.max(attempts.c.started_at))
        sent = dict(connection.execute(query.group_by(attempts.c.submission_id)).tuples().all())
    interrupted = "the run that sent it ended before the response was recorded"
    expected = [
        HeldSubmission("b", DATE, 2, to_datetime(sent["b"]), interrupted),
        HeldSubmission("z", DATE, 1, to_datetime(sent["z"]), "lost"),
        HeldSubmission("a", NEXT, 1, to_datetime(sent["a"]), "lost"),
    ]
    assert list_held(ledger) == expected
    assert list_held(ledger, DATE) == expected[:2]


def test_the_newest_decision_counts_and_the_history_keeps_all(ledger: Ledger, lease: Lease) -> None:
    lose(ledger, lease, "a", "b")
    resolve_held(ledger, "a", "abandon", "one")
    resolve_held(ledger, "a", "retry", "o" * 300)
    entries = read_entries(ledger, ["a", "b"])
    assert (entries["a"].decision, entries["b"].decision) == (Decision.RETRY, None)
    assert history(ledger) == [("a", "abandon", "one", None), ("a", "retry", "o" * 255, None)]
    for key, decision, message in (
        ("a", "reopen", "resolved as retry or abandon, not as 'reopen'"),
        ("x", "retry", "submission x is not in the ledger: see `kyc-pipeline held list`"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve_held(ledger, key, decision, "operator")
    call(ledger, lease, Claim("d", "c"), State.COMPLETED, AttemptResult.RESPONDED)
    with pytest.raises(UsageError, match="submission d is completed, not held: nothing to decide"):
        resolve_held(ledger, "d", "retry", "operator")
    assert len(history(ledger)) == 2


@pytest.mark.parametrize("state", [State.REFUSED, State.QUARANTINED])
def test_what_is_reopened_may_be_sent_once_more(ledger: Ledger, lease: Lease, state: State) -> None:
    call(ledger, lease, Claim("a", "c"), state, AttemptResult.REFUSED, response="<html>", error="no")
    call(ledger, lease, Claim("b", "c"), state, AttemptResult.REFUSED, error="no")
    assert reopen(ledger, "a", " the proxy was wrong ", "o" * 300) == DATE
    assert history(ledger) == [("a", "reopen", "o" * 255, "the proxy was wrong")]
    entry, row = read_responses(ledger, ["a"])["a"]
    assert (entry.state, entry.decision) == (State.UNCERTAIN, Decision.RETRY)
    assert (row["response"], row["error"]) == (None, f"{state}, then reopened")
    assert read_entries(ledger, ["b"])["b"].state is state
    assert dates_to_send_again(ledger, "hold") == [DATE]
    with pytest.raises(UsageError, match="say why"):
        reopen(ledger, "b", " ", "operator")
    with pytest.raises(UsageError, match="submission a is uncertain: only a refused or quarantined one"):
        reopen(ledger, "a", "why", "operator")
    with pytest.raises(UsageError, match="submission x is not in the ledger"):
        reopen(ledger, "x", "why", "operator")


def test_only_a_decision_or_the_policy_sends_again(ledger: Ledger, lease: Lease) -> None:
    later = acquire_lease(ledger, NEXT, "run-2")
    lose(ledger, later, "b")
    lose(ledger, lease, "a")
    assert (dates_to_send_again(ledger, "hold"), dates_to_send_again(ledger, "retry")) == ([], [DATE, NEXT])
    resolve_held(ledger, "a", "abandon", "operator")
    resolve_held(ledger, "b", "retry", "operator")
    assert (dates_to_send_again(ledger, "hold"), dates_to_send_again(ledger, "retry")) == ([NEXT], [NEXT])
    # A second call in doubt: the policy does not allow a third.
    call(ledger, later, Claim("b", "c", resend=True), State.UNCERTAIN, AttemptResult.MAYBE_PROCESSED)
    assert (dates_to_send_again(ledger, "hold"), dates_to_send_again(ledger, "retry")) == ([], [])


def test_nothing_is_created_to_answer_a_question(tmp_path: Any) -> None:
    with Ledger(f"sqlite:///{tmp_path / 'none.sqlite'}") as ledger:
        assert list_held(ledger) == []
        assert dates_to_send_again(ledger, "retry") == []
        assert read_spend_of_runs(ledger, ["run"]) == Spend(0, 0)
        for decide in (
            lambda: resolve_held(ledger, "a", "retry", "operator"),
            lambda: reopen(ledger, "a", "why", "operator"),
        ):
            with pytest.raises(UsageError, match="submission a is not in the ledger"):
                decide()
    assert list(tmp_path.iterdir()) == []


def test_calls_are_counted_by_partition_and_by_run(ledger: Ledger, lease: Lease) -> None:
    later = acquire_lease(ledger, NEXT, "run-2")
    call(ledger, lease, Claim("a", "c"), State.FAILED, AttemptResult.NOT_PROCESSED)
    call(ledger, lease, Claim("a", "c"), State.COMPLETED, AttemptResult.RESPONDED)
    call(ledger, lease, Claim("b", "c"), State.REFUSED, AttemptResult.REFUSED)
    lose(ledger, later, "d")
    assert read_spend(ledger, DATE) == Spend(3, 1, 1)
    assert read_spend(ledger, NEXT) == Spend(1, 1, 0)
    assert read_spend_of_runs(ledger, ["run"]) == Spend(3, 1, 1)
    assert read_spend_of_runs(ledger, ["run", "run-2", "unknown"]) == Spend(4, 2, 1)
    assert read_spend_of_runs(ledger, []) == read_spend_of_runs(ledger, ["unknown"]) == Spend(0, 0)
    with ledger.write() as connection:
        connection.execute(sa.update(attempts).values(started_at=attempts.c.number * 10))
        connection.execute(
            sa.update(submissions)
            .where(submissions.c.submission_id == "b")
            .values(content_sha256=ERASED_CONTENT)
        )
    assert earlier_attempts(ledger, ["a", "d", "unknown"]) == {"a": (10, (None,)), "d": (10, (None,))}
    assert list(read_outcomes(ledger, DATE)) == [[("a", Outcome.COMPLETED)]]
