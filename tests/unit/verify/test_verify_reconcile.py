"""Reconciliation of a day: it finds outcomes that were removed, duplicated, invented or changed."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from kyc_pipeline.deepxl.simulator import running_simulator
from kyc_pipeline.deepxl.simulator.faults import Responds
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES, Table
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.queries import read_outcomes
from kyc_pipeline.verify import reconcile as reconciling
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.reconcile import ROWS_AT_ONCE, reconcile
from kyc_pipeline.vocabulary import Outcome
from tests.unit.verify.world import DATE, TOKEN, World

Rows = list[dict[str, Any]]
IDS = ("a", "failed", "held", "z")


@pytest.fixture(autouse=True, params=[ROWS_AT_ONCE, 2, 1])
def _ranges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large day is compared in ranges of ids, which must make no difference."""
    monkeypatch.setattr(reconciling, "ROWS_AT_ONCE", request.param)


def verify(world: World, *ids: str) -> None:
    world.submit(*ids)
    world.options = {"deepxl_max_attempts": 1}
    faults = {"failed": [Responds(503)], "held": [Responds(500)]}
    with running_simulator(token=TOKEN, faults=faults) as simulator:
        world.server = simulator.url
        world.verify()


def verified(world: World) -> World:
    verify(world, *IDS)
    assert list(world.outcomes().values()) == ["completed", "failed", "uncertain", "completed"]
    return world


def differences(world: World) -> list[str]:
    return [str(found) for found in reconcile(world.lake, world.ledger, DATE).differences]


def test_stores_that_agree(world: World) -> None:
    accounts = reconcile(verified(world).lake, world.ledger, DATE)
    assert (accounts.submissions, accounts.outcomes, accounts.in_ledger) == (4, 4, 4)
    assert accounts.differences == ()
    # A submission that was never processed may leave the manifest; one that was sent may not.
    verify(world, "a", "held", "z")
    assert differences(world) == []
    verify(world, "a", "z")
    assert differences(world) == ["1 sent according to the ledger but without an outcome here (held)"]


def test_no_store_is_read_again_for_each_range(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submissions twice if there are several ranges: their bounds come first."""
    world, read = verified(sqlite_world), Counter[str]()
    batches = Lake.batches

    def counted_batches(lake: Lake, table: Table, *arguments: Any) -> Iterator[pa.RecordBatch]:
        read[table.name] += 1
        return batches(lake, table, *arguments)

    def counted_outcomes(ledger: Ledger, date: str) -> Iterator[Sequence[tuple[str, Outcome]]]:
        read["ledger"] += 1
        return read_outcomes(ledger, date)

    monkeypatch.setattr(Lake, "batches", counted_batches)
    monkeypatch.setattr(reconciling, "read_outcomes", counted_outcomes)
    assert differences(world) == []
    of_submissions = 1 if len(IDS) <= reconciling.ROWS_AT_ONCE else 2
    assert read == {SUBMISSIONS.name: of_submissions, VERIFICATION_RESPONSES.name: 1, "ledger": 1}


def test_databases_that_sort_in_their_own_way(world: World) -> None:
    """The lake is in the order of code points, PostgreSQL's default that of a language."""
    verify(world, "B", "Z-1", "_x", "a", "b", "ä", "10", "9")
    accounts = reconcile(world.lake, world.ledger, DATE)
    assert (accounts.submissions, accounts.outcomes, accounts.in_ledger) == (8, 8, 8)
    assert accounts.differences == ()


def test_a_failed_one_that_moved_to_another_day_was_not_attempted_there(sqlite_world: World) -> None:
    world = verified(sqlite_world)
    world.submit("failed", date="2024-09-02")
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify(date="2024-09-02", budget=CallBudget(0))
    assert world.outcomes("2024-09-02") == {"failed": "not_attempted"}
    assert reconcile(world.lake, world.ledger, "2024-09-02").differences == ()


def test_days_without_calls(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit()
    world.verify()
    assert differences(world) == []
    world.submit(*IDS)
    with running_simulator(token=TOKEN) as simulator:
        world.server = simulator.url
        world.verify(budget=CallBudget(1))
    assert differences(world) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda rows: rows[1:],
            [
                "1 accepted without an outcome (a)",
                "1 sent according to the ledger but without an outcome here (a)",
            ],
        ),
        (lambda rows: [*rows, rows[-1]], ["1 with several outcomes (z)"]),
        (
            lambda rows: [*rows, rows[0] | {"submission_id": "zz"}],
            [
                "1 with an outcome but not accepted (zz)",
                "1 with an outcome but not in the ledger (zz)",
            ],
        ),
        (
            lambda rows: [rows[0] | {"outcome": "refused"}, *rows[1:]],
            ["1 with another outcome in the ledger (a)"],
        ),
        (
            lambda rows: [rows[0] | {"submission_id": "held"}, *rows[1:]],
            [
                "1 accepted without an outcome (a)",
                "1 with several outcomes (held)",
                "1 sent according to the ledger but without an outcome here (a)",
                "1 with another outcome in the ledger (held)",
            ],
        ),
    ],
    ids=["taken out", "doubled", "invented", "changed", "swapped: the counts agree"],
)
def test_outcomes_that_were_tampered_with(
    sqlite_world: World, change: Callable[[Rows], Rows], found: list[str]
) -> None:
    world = verified(sqlite_world)
    rows = world.lake.read(VERIFICATION_RESPONSES, DATE).to_pylist()
    world.lake.write(VERIFICATION_RESPONSES, DATE, change(rows))
    assert sorted(differences(world)) == sorted(found)


def test_many_differences_are_counted_and_the_first_are_named(sqlite_world: World) -> None:
    world = sqlite_world
    world.submit(*(f"s-{number}" for number in range(9)))
    world.lake.write(VERIFICATION_RESPONSES, DATE, [])
    assert differences(world) == ["9 accepted without an outcome (s-0, s-1, s-2, s-3, s-4 and 4 more)"]
    world.submit("a", "a")
    assert "1 accepted twice (a)" in differences(world)
    assert world.lake.row_count(SUBMISSIONS, DATE) == 2
