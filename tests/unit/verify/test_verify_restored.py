"""A restored ledger: calls and decisions since the backup, as far as the lake knows them, count.

The simulator's history hides the records, so that a look-up does not help.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.faults import Fault, Hangs, Resets, Responds
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger import transfer
from kyc_pipeline.ledger.decisions import list_held, reopen, resolve_held
from kyc_pipeline.ledger.queries import read_spend
from kyc_pipeline.ledger.times import Clock
from tests.unit.verify import children
from tests.unit.verify.world import DATE, TOKEN, World

LATER = "2024-09-02"
LOST = Resets(record=True)
BUSY = Responds(503)
REFUSES = Responds(422, {"Content-Type": "application/json"}, b'{"message": "no"}')
ONE_ATTEMPT = {"deepxl_max_attempts": 1}
POLICY = {"deepxl_uncertain": "retry"}


@contextmanager
def vendor(world: World, *faults: Fault, ids: str = "a") -> Iterator[Simulator]:
    """Submits `ids` to a simulator with these faults for each of them."""
    with running_simulator(
        token=TOKEN, faults={key: list(faults) for key in ids}, lookup_lag_seconds=1e9
    ) as simulator:
        world.server = simulator.url
        world.submit(*ids)
        yield simulator


def back_up(world: World) -> None:
    world.ledger.close()
    shutil.copy(world.root / "ledger.sqlite", world.root / "backup.sqlite")


def restore(world: World) -> None:
    former = transfer.set_aside(world.ledger)
    assert former is not None
    with transfer.opened_backup(world.root / "backup.sqlite") as backup:
        transfer.copy_backup(backup, world.ledger)
    transfer.complete_from_lake(world.lake, world.ledger)
    with transfer.opened_backup(former) as source:
        transfer.carry_over(world.lake, source, world.ledger)
    transfer.declare_restored(world.lake, world.ledger)


def decide(world: World, decision: str) -> None:
    resolve_held(world.ledger, "a", decision, "somebody")


def test_a_decision_that_was_used_since_allows_no_other_call(sqlite_world: World) -> None:
    world = sqlite_world
    with vendor(world, LOST, LOST) as simulator:
        world.verify()
        decide(world, "retry")
        back_up(world)
        assert world.verify().calls == 1
        restore(world)
        assert world.verify().held == 1
        assert simulator.received["a"] == 2
        decide(world, "retry")
        assert world.verify().calls == 1


def test_a_decision_that_a_killed_run_may_have_used_is_made_again(
    sqlite_world: World, processes: ForkServerContext, until: Callable[[Callable[[], bool]], None]
) -> None:
    world = sqlite_world
    with vendor(world, LOST, Hangs(record=True)) as simulator:
        world.verify()
        decide(world, "retry")
        back_up(world)
        arguments = (str(world.root), world.server, world.ledger_url, world.options, DATE, "run")
        child = processes.Process(target=children.verify, args=arguments)
        child.start()
        until(lambda: len(simulator.records) == 2)
        child.kill()
        child.join()
        restore(world)
        assert world.verify().calls == 0
        assert [each.submission_id for each in list_held(world.ledger)] == ["a"]


@pytest.mark.parametrize("is_known_by", ["lake", "former ledger"])
def test_what_was_abandoned_since_is_not_sent(sqlite_world: World, is_known_by: str) -> None:
    world = sqlite_world
    with vendor(world, LOST):
        world.verify()
        back_up(world)
        decide(world, "abandon")
        if is_known_by == "lake":
            world.verify()
            world.ledger.close()
            shutil.copy(world.root / "backup.sqlite", world.root / "ledger.sqlite")
        restore(world)
        world.options = POLICY
        assert world.verify().calls == 0
    assert world.outcomes() == {"a": "abandoned"}


def test_the_policy_counts_the_calls_made_since(sqlite_world: World) -> None:
    world = sqlite_world
    with vendor(world, LOST, LOST):
        world.verify()
        back_up(world)
        world.options = POLICY
        assert world.verify().calls == 1
        restore(world)
        assert world.verify().calls == 0


def test_what_is_held_since_waits_for_a_decision(sqlite_world: World) -> None:
    world = sqlite_world
    world.options = ONE_ATTEMPT
    with vendor(world, BUSY, LOST):
        world.verify()
        back_up(world)
        world.verify()
        restore(world)
        summary = world.verify()
    assert (summary.calls, summary.held) == (0, 1)


def test_a_reopening_before_the_backup_stays(sqlite_world: World) -> None:
    world = sqlite_world
    with vendor(world, REFUSES):
        world.verify()
        reopen(world.ledger, "a", "the photo was turned", "somebody")
        back_up(world)
        restore(world)
        assert world.verify().calls == 1
    assert world.outcomes() == {"a": "completed"}


@pytest.mark.parametrize(
    ("fault", "outcome"), [(Responds(200), "uncertain"), (REFUSES, "refused"), (None, "completed")]
)
def test_what_was_reopened_since_keeps_its_new_outcome(
    sqlite_world: World, fault: Fault | None, outcome: str
) -> None:
    world = sqlite_world
    with vendor(world, REFUSES, *([fault] if fault else [])) as simulator:
        world.verify()
        back_up(world)
        reopen(world.ledger, "a", "the photo was turned", "somebody")
        world.verify()
        before = world.responses()
        restore(world)
        assert world.verify().calls == 0
        assert simulator.received["a"] == 2
    after = world.responses()
    assert after == before
    assert after["a"]["outcome"] == outcome


def test_calls_made_since_count_in_the_accounts_and_in_the_days_budget(sqlite_world: World) -> None:
    world = sqlite_world
    world.options = ONE_ATTEMPT | {"deepxl_max_calls_per_day": 5}
    with vendor(world, BUSY, ids="ab") as simulator:
        world.verify()
        back_up(world)
        world.verify()
        restore(world)
        spend = read_spend(world.ledger, DATE)
        assert (spend.calls, spend.billable_calls) == (4, 2)
        world.submit("c", "d", date=LATER)
        assert world.verify(LATER).calls == 1
        assert simulator.received.total() == 5


def test_a_response_that_came_after_the_row_had_moved_to_a_later_day_is_found(sqlite_world: World) -> None:
    world = sqlite_world
    world.options = ONE_ATTEMPT
    with vendor(world, BUSY) as simulator:
        world.verify()
        world.submit("b")
        world.submit("a", date=LATER)
        world.verify(LATER)
        world.ledger.close()
        (world.root / "ledger.sqlite").unlink()
        transfer.complete_from_lake(world.lake, world.ledger)
        transfer.declare_restored(world.lake, world.ledger)
        assert world.verify(LATER).calls == 0
        assert simulator.received["a"] == 2
    assert world.outcomes(LATER) == {"a": "completed"}


def test_a_restore_under_a_clock_that_is_behind_still_looks_up_first(sqlite_world: World) -> None:
    world = sqlite_world
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.submit("a")
        world.verify()
        back_up(world)
        world.submit("b", date=LATER)
        world.verify(LATER)
        Path(world.lake.path(VERIFICATION_RESPONSES, LATER)).unlink()
        world.ledger.clock = Clock(now=lambda: 0)
        restore(world)
        summary = world.verify(LATER)
        assert (summary.calls, summary.adopted) == (0, 1)


def test_what_was_turned_away_is_looked_up_on_any_day(sqlite_world: World) -> None:
    """The lake calls it failed, and its row moves to a day after the restore."""
    world = sqlite_world
    world.options = ONE_ATTEMPT
    with vendor(world, BUSY):
        world.verify()
        world.ledger.close()
        (world.root / "ledger.sqlite").unlink()
        transfer.complete_from_lake(world.lake, world.ledger)
        transfer.declare_restored(world.lake, world.ledger)
        world.submit("b")
        world.submit("a", date="2999-01-01")
        summary = world.verify("2999-01-01")
        assert (summary.lookups > 0, summary.calls) == (True, 1)
