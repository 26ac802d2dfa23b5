"""The plan, dry runs and held submissions."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import Responds
from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger.decisions import list_held, resolve_all_held, resolve_held
from kyc_pipeline.ledger.schema import decisions
from kyc_pipeline.verify.planning import plan_partitions
from kyc_pipeline.vocabulary import Outcome
from tests.unit.verify.world import DATE, TOKEN, World, is_complete

LATER = "2024-09-02"


def test_a_plan_of_a_new_partition_makes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.options = {"deepxl_price_per_call": "0.10"}
    world.submit("a", "b", "c")
    plan, missing = plan_partitions(world.lake, world.ledger, [DATE, "2024-09-09"], world.settings)
    assert (plan.submissions, plan.calls_to_make, plan.already_paid, plan.held) == (3, 3, 0, 0)
    assert str(plan.estimated_cost) == "0.30 EUR"
    assert (missing.submissions, missing.calls_to_make, str(missing.estimated_cost)) == (0, 0, "0.00 EUR")
    assert not (tmp_path / "ledger.sqlite").exists()


def test_a_plan_shows_what_is_paid_and_held(world: World) -> None:
    world.submit("a", "b", "c", "d")
    faults = {"b": [Responds(500)], "c": [Responds(415)], "d": [Responds(503)] * 5}
    with running_simulator(token=TOKEN, faults=faults) as simulator:
        world.server = simulator.url
        world.verify()
        calls = simulator.received.total()
        (plan,) = plan_partitions(world.lake, world.ledger, [DATE], world.settings)
        assert (plan.already_paid, plan.held, plan.calls_to_make) == (2, 1, 1)
        assert plan.estimated_cost is None
        assert simulator.received.total() == calls
        world.options = {"deepxl_uncertain": "retry"}
        (plan,) = plan_partitions(world.lake, world.ledger, [DATE], world.settings)
        assert plan.calls_to_make == 2


def test_a_plan_writes_nothing_and_needs_no_token(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit("a")
    world.options = {"deepxl_api_token": None}
    (plan,) = plan_partitions(world.lake, world.ledger, [DATE], world.settings)
    assert plan.calls_to_make == 1
    assert not world.ledger.exists()
    assert not world.lake.exists(VERIFICATION_RESPONSES, DATE)


def test_held_submissions_are_listed_and_decided(world: World) -> None:
    assert list_held(world.ledger) == []
    world.submit("a", "b")
    with running_simulator(token=TOKEN, faults={"a": [Responds(504)]}) as simulator:
        world.server = simulator.url
        world.verify()
    (held,) = list_held(world.ledger)
    assert (held.submission_id, held.partition_date, held.attempts) == ("a", DATE, 1)
    assert held.last_sent_at is not None
    assert "504" in (held.error or "")
    assert list_held(world.ledger, "2024-09-02") == []
    for submission_id, decision, text in (
        ("a", "forget", "retry or abandon"),
        ("b", "retry", "is completed"),
        ("unknown", "retry", "not in the ledger"),
    ):
        with pytest.raises(UsageError, match=text):
            resolve_held(world.ledger, submission_id, decision, "operator")
    resolve_held(world.ledger, "a", "abandon", "operator")
    assert list_held(world.ledger) == []
    resolve_held(world.ledger, "a", "retry", "operator")
    (plan,) = plan_partitions(world.lake, world.ledger, [DATE], world.settings)
    assert plan.calls_to_make == 1


def test_all_held_submissions_of_a_day_or_of_all_days_are_decided_at_once(world: World) -> None:
    world.options = {"deepxl_max_concurrency": 1}
    for date, ids in ((DATE, ["a", "b", "c"]), (LATER, ["d"])):
        world.submit(*ids, date=date)
    with running_simulator(token=TOKEN, faults={key: [Responds(500)] for key in "abd"}) as simulator:
        world.server = simulator.url
        for date in (DATE, LATER):
            world.verify(date)
        resolve_held(world.ledger, "a", "abandon", "operator")
        assert resolve_all_held(world.ledger, "retry", "operator", DATE) == ["b"]
        assert [held.submission_id for held in list_held(world.ledger)] == ["d"]
        assert resolve_all_held(world.ledger, "retry", "operator") == ["d"]
        assert resolve_all_held(world.ledger, "retry", "operator") == []
        for date in (DATE, LATER):
            world.verify(date, "after")
        assert simulator.received == {"a": 1, "b": 2, "c": 1, "d": 2}
    assert world.outcomes() == {"a": "abandoned", "b": "completed", "c": "completed"}
    with world.ledger.read() as connection:
        made = connection.execute(sa.select(decisions.c.submission_id, decisions.c.decision)).all()
    assert sorted(made) == [("a", "abandon"), ("b", "retry"), ("d", "retry")]


def test_deciding_without_a_ledger_makes_none(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(UsageError, match="not in the ledger"):
        resolve_held(world.ledger, "a", "retry", "operator")
    assert not (tmp_path / "ledger.sqlite").exists()


def test_a_held_submission_needs_no_token_when_nothing_is_sent(world: World) -> None:
    world.submit("a")
    with running_simulator(token=TOKEN, faults={"a": [Responds(500)]}) as simulator:
        world.server = simulator.url
        world.verify()
    world.options = {"deepxl_api_token": None}
    summary = world.verify(run_id="run-2")
    assert (summary.calls, summary.held) == (0, 1)


def test_a_run_that_starts_from_an_older_plan_pays_nothing_twice(world: World) -> None:
    world.submit("a", "b")
    (plan,) = plan_partitions(world.lake, world.ledger, [DATE], world.settings)
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        assert is_complete(world.verify(planned=plan.scan))
        summary = world.verify(run_id="run-2", planned=plan.scan)
        assert (summary.calls, summary.outcomes) == (0, {Outcome.COMPLETED: 2})
        assert dict(simulator.received) == {"a": 1, "b": 1}
