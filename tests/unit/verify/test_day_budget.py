"""`DEEPXL_MAX_CALLS_PER_DAY`: no day has more calls, whatever runs, hosts and crashes there are."""

from datetime import UTC, datetime
from multiprocessing.context import ForkServerContext

import pytest
import sqlalchemy as sa

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import Responds
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.day_budget import DayBudget, recount
from kyc_pipeline.ledger.leases import acquire_lease, release_lease
from kyc_pipeline.ledger.models import Claim, Discovery
from kyc_pipeline.ledger.schema import attempts
from kyc_pipeline.ledger.times import now
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.summary import Stopped
from tests.unit.verify import children
from tests.unit.verify.world import DATE, TOKEN, World, is_complete

NEXT = "2024-09-02"
DAY = 86_400_000_000
"""In microseconds."""


def age_attempts(world: World, by: int = DAY) -> None:
    """Moves all attempts into the past, as time does."""
    with world.ledger.write() as connection:
        connection.execute(sa.update(attempts).values(started_at=attempts.c.started_at - by))
        recount(connection)


def test_two_runs_at_once_share_the_day_to_the_last_call(world: World, processes: ForkServerContext) -> None:
    for date in (DATE, NEXT):
        world.submit(*(f"{date}-{number}" for number in range(8)), date=date)
    options = {"deepxl_max_calls_per_day": 7}
    with world.ledger.write():
        pass  # both find a ledger
    # A retry is a call too.
    faults = {f"{DATE}-0": [Responds(503)]}
    with running_simulator(token=TOKEN, faults=faults, latency_ms=20) as simulator:
        arguments = (str(world.root), simulator.url, world.ledger_url, options)
        runs = [
            processes.Process(target=children.verify, args=(*arguments, date, f"run-{date}"))
            for date in (DATE, NEXT)
        ]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        assert [run.exitcode for run in runs] == [0, 0]
        assert simulator.received.total() == 7
        world.server, world.options = simulator.url, options
        for date in (DATE, NEXT):
            summary = world.verify(date=date, run_id="later")
            assert (summary.stopped, summary.calls) == (Stopped.DAY_BUDGET, 0)
        assert simulator.received.total() == 7
        age_attempts(world)
        world.options = {"deepxl_max_calls_per_day": 16}
        for date in (DATE, NEXT):
            assert is_complete(world.verify(date=date, run_id="tomorrow"))
        assert len(simulator.records) == 16


def test_a_run_that_reaches_it_says_when_it_can_go_on(world: World) -> None:
    world.submit("a", "b", "c")
    world.options = {"deepxl_max_calls_per_day": 2}
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        summary = world.verify(budget=CallBudget(100))
        assert simulator.received.total() == summary.calls == 2
    assert summary.stopped is Stopped.DAY_BUDGET
    assert "DEEPXL_MAX_CALLS_PER_DAY=2" in str(summary)
    assert "it begins again at " in summary.why
    assert summary.why.endswith(" 00:00 UTC")
    assert sorted(world.outcomes().values()) == ["completed", "completed", "not_attempted"]


def test_once_it_is_used_up_a_run_needs_neither_token_nor_api(world: World) -> None:
    world.submit("a", "b")
    world.options = {"deepxl_max_calls_per_day": 0, "deepxl_api_token": None}
    summary = world.verify()
    assert (summary.stopped, summary.calls, is_complete(summary)) == (Stopped.DAY_BUDGET, 0, False)
    assert world.outcomes() == {"a": "not_attempted", "b": "not_attempted"}


def test_a_claim_of_which_nothing_was_sent_does_not_count(world: World) -> None:
    world.submit("a", id_file="gone.jpg")
    world.submit("b", date=NEXT)
    world.options = {"deepxl_max_calls_per_day": 1}
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        assert world.verify().calls == 0
        assert is_complete(world.verify(date=NEXT, run_id="run-2"))


def test_a_claim_of_a_killed_run_counts(world: World) -> None:
    """Nobody knows whether its request left."""
    lease = acquire_lease(world.ledger, DATE, "killed")
    commit(world.ledger, lease, [Claim("a", "c")], [])
    release_lease(world.ledger, lease)
    assert DayBudget(3).read(world.ledger).left == 2


def test_a_call_that_only_a_look_up_knows_counts_when_it_is_found(world: World) -> None:
    lease = acquire_lease(world.ledger, DATE, "run")
    found = Discovery("a", "c", 200, datetime.now(UTC), "{}")
    for _ in range(2):  # recorded again, it counts once
        commit(world.ledger, lease, [], [found])
    assert DayBudget(3).read(world.ledger).left == 2


@pytest.mark.parametrize("calls", [None, 5])
def test_one_commit_wins_no_more_claims_than_are_left(world: World, calls: int | None) -> None:
    budget = DayBudget(calls)
    lease = acquire_lease(world.ledger, DATE, "run")
    commit(world.ledger, lease, [Claim("a", "c"), Claim("b", "c")], [])
    age_attempts(world)
    commit(world.ledger, lease, [Claim("c", "c")], [])
    claims = [Claim(f"s-{number}", "c") for number in range(6)]
    won = commit(world.ledger, lease, claims, [], budget)
    if calls is None:
        assert len(won) == 6
        assert not budget.is_used_up
        return
    assert won == {claim.token for claim in claims[: len(won)]}
    assert len(won) == 4
    assert budget.is_used_up
    # A repeated commit wins what it won, and no more.
    assert commit(world.ledger, lease, claims, [], budget) == won


def test_the_day_ends_at_midnight_utc(world: World) -> None:
    lease = acquire_lease(world.ledger, DATE, "run")
    commit(world.ledger, lease, [Claim("a", "c"), Claim("b", "c")], [])
    midnight = now() // DAY * DAY
    for submission_id, started_at in {"a": midnight - 1, "b": midnight}.items():
        with world.ledger.write() as connection:
            connection.execute(
                sa.update(attempts)
                .where(attempts.c.submission_id == submission_id)
                .values(started_at=started_at)
            )
            recount(connection)
    assert DayBudget(5).read(world.ledger).left == 4
