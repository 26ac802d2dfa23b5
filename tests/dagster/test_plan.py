"""The plan is what the run then does, and a row that moves between days is never in neither."""

import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kyc_pipeline.cli.local_run import run_partitions
from kyc_pipeline.cli.plan import plan_days
from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.ingest.manifests import ingest_partition, is_ingested
from kyc_pipeline.ingest.state import Records, ingest_order
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS, ResponsesState
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.leases import hold
from kyc_pipeline.ledger.models import AttemptResult, Claim, ClaimResult, State
from kyc_pipeline.ledger.queries import read_entries
from kyc_pipeline.orchestration import partitions
from kyc_pipeline.orchestration.catch_up import due_days
from kyc_pipeline.orchestration.partitions import batches
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.partition import Action, action, write_responses
from tests.conftest import Landing, image_bytes

DAYS = ["2024-09-01", "2024-09-02", "2024-09-03"]
SEND = Action.SEND
IDS = ["a", "b", "late"]
"""The document of `late` changes, breaks and disappears."""
Rows = list[tuple[str, int]]


# --- any order of deliveries, moves, corrections and runs ---------------------------------------------


@dataclasses.dataclass(frozen=True)
class Deliver:
    """A day's manifest from now on: ids, each with one of two contents."""

    day: str
    rows: Rows


@dataclasses.dataclass(frozen=True)
class Document:
    """The document of `late` from now on."""

    content: bytes | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run over some days in which some calls fail and some are not made."""

    days: list[str]
    failing: frozenset[str]
    left_out: frozenset[str]


ROWS = st.lists(st.tuples(st.sampled_from(IDS), st.integers(0, 1)), max_size=3)
RANGES = [DAYS[first : last + 1] for first in range(3) for last in range(first, 3)]
SETS = st.frozensets(st.sampled_from(IDS))
STEPS = st.one_of(
    st.builds(Deliver, st.sampled_from(DAYS), ROWS),
    st.builds(Document, st.sampled_from([image_bytes(1), image_bytes(2), b"broken", None])),
    st.builds(Run, st.sampled_from(RANGES), SETS, SETS),
)


@dataclasses.dataclass
class World:
    """A landing zone and a pipeline without Dagster and HTTP: a call is a claim and its result."""

    landing: Landing
    pipeline: Pipeline

    def deliver(self, day: str, rows: Sequence[tuple[str, int]]) -> None:
        self.landing.manifest(
            day,
            [
                {
                    "submission_id": key,
                    "id_file": "late.jpg" if key == "late" else "id.jpg",
                    "selfie_file": "id.jpg",
                    "tags": {"content": str(content)},
                }
                for key, content in rows
            ],
        )

    def document(self, content: bytes | None) -> None:
        if content is None:
            (self.landing.root / "documents" / "late.jpg").unlink(missing_ok=True)
        else:
            self.landing.document("late.jpg", content)

    def ingest(self, day: str) -> None:
        ingest_partition(landing=self.landing.root, lake=self.pipeline.lake, date=day)

    def is_outdated(self, day: str) -> bool:
        return not is_ingested(self.landing.root, self.pipeline.lake, day)

    def send(self, day: str, run: Run) -> set[str]:
        """Makes the day's calls, and writes its outcomes; returns the ids that were to be sent."""
        lake = self.pipeline.lake
        rows = lake.read(SUBMISSIONS, day, ["submission_id", "content_sha256"]).to_pylist()
        with self.pipeline.open_ledger() as ledger:
            entries = read_entries(ledger, [row["submission_id"] for row in rows])
            to_send = [
                row
                for row in rows
                if action(entries.get(row["submission_id"]), day, row["content_sha256"], "hold")
                is Action.SEND
            ]
            with hold(ledger, day, "run") as held:
                for row in to_send:
                    if (key := row["submission_id"]) in run.left_out:
                        continue
                    claim = Claim(key, row["content_sha256"])
                    assert commit(ledger, held.lease, [claim], [])
                    fails = key in run.failing
                    state = State.FAILED if fails else State.COMPLETED
                    result = AttemptResult.NOT_PROCESSED if fails else AttemptResult.RESPONDED
                    commit(ledger, held.lease, [], [ClaimResult(claim, state, result, billable=not fails)])
            write_responses(lake, ledger, day, ResponsesState.COMPLETE, "hold")
        return {row["submission_id"] for row in to_send}

    def run(self, run: Run) -> dict[str, set[str]]:
        """What the command line does; returns the ids to send by day."""
        sent: dict[str, set[str]] = defaultdict(set)

        def visit(days: Sequence[str]) -> None:
            for day in ingest_order(days, self.is_outdated):
                self.ingest(day)
            for day in days:
                sent[day] |= self.send(day, run)

        for batch in batches(run.days):
            visit(batch)
        records = Records(self.pipeline.lake)
        visit([day for day in run.days if not records.holds(day)])
        return sent

    def accepted(self) -> dict[str, list[str]]:
        lake = self.pipeline.lake
        days = lake.dates(SUBMISSIONS)
        rows: Any = {day: lake.read(SUBMISSIONS, day)["submission_id"].to_pylist() for day in days}
        return dict(rows)


@pytest.fixture
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], World]]:
    """A new world for each example."""
    made: list[Path] = []

    def make() -> World:
        folder = tmp_path_factory.mktemp("world")
        made.append(folder)
        landing = Landing(folder / "landing")
        landing.document("id.jpg", image_bytes(0))
        for day in DAYS:
            landing.manifest(day, [])
        return World(landing, Pipeline(settings_of(folder)))

    yield make
    for folder in made:
        shutil.rmtree(folder)


def settings_of(folder: Path) -> Settings:
    return Settings(
        _env_file=None,
        kyc_landing=folder / "landing",
        kyc_lake=str(folder / "lake"),
        kyc_ledger_url=f"sqlite:///{folder / 'ledger.sqlite'}",
    )


@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=3, max_size=6))
def test_the_plan_is_what_the_run_does_and_no_row_is_lost(
    make_world: Callable[[], World], monkeypatch: pytest.MonkeyPatch, steps: list[Deliver | Document | Run]
) -> None:
    monkeypatch.setattr(partitions, "BACKFILL_DAYS_PER_RUN", 2)
    world = make_world()
    lake = world.pipeline.lake
    manifests: dict[str, Rows] = {day: [] for day in DAYS}
    everything = Run(DAYS, frozenset(), frozenset())
    for step in [*steps, everything]:
        if isinstance(step, Deliver):
            manifests[step.day] = step.rows
            world.deliver(step.day, step.rows)
            continue
        if isinstance(step, Document):
            world.document(step.content)
            continue
        plans, unreadable = plan_days(world.pipeline, step.days)
        assert not unreadable
        to_send = world.run(step)
        accepted = world.accepted()
        assert {plan.date: (plan.submissions, plan.calls_to_make) for plan in plans} == {
            day: (len(accepted[day]), len(to_send[day])) for day in step.days
        }
        if not any(isinstance(other, Document) for other in steps):
            assert {plan.date: plan.rejected.total() for plan in plans} == {
                day: lake.row_count(REJECTED_SUBMISSIONS, day) for day in step.days
            }
        ids = [key for keys in accepted.values() for key in keys]
        assert len(ids) == len(set(ids))
        for day, rows in manifests.items():
            for key, _ in rows:
                # It is accepted somewhere, or a day that has it is due.
                waits = any(
                    world.is_outdated(other) for other, theirs in manifests.items() if key in dict(theirs)
                )
                assert key == "late" or key in ids or waits, (day, key)
    assert not any(map(world.is_outdated, DAYS))


# --- the cases, one by one ----------------------------------------------------------------------------

NOTHING_SENT = Run(DAYS, frozenset(), frozenset(IDS))


@pytest.mark.parametrize("content", [0, 1], ids=["as it was", "corrected"])
@pytest.mark.parametrize(("here", "there"), [(0, 1), (1, 0)], ids=["later", "earlier"])
def test_a_day_is_due_when_the_id_that_it_left_to_another_is_free(
    make_world: Callable[[], World], here: int, there: int, content: int
) -> None:
    world = make_world()
    old, new, other = DAYS[here], DAYS[there], DAYS[2]
    world.deliver(old, [("a", 0)])
    world.deliver(other, [("b", 0)])
    world.run(NOTHING_SENT)
    world.deliver(new, [("a", content)])
    world.ingest(new)
    assert world.accepted() == {old: ["a"], new: [], other: ["b"]}
    assert not world.is_outdated(new)
    # A change that concerns other ids outdates nobody.
    world.deliver(old, [("a", 0), ("late", 0)])
    world.ingest(old)
    assert not any(map(world.is_outdated, DAYS))
    world.deliver(old, [])
    world.ingest(old)
    assert world.is_outdated(new)
    world.ingest(new)
    assert world.accepted() == {old: [], new: ["a"], other: ["b"]}
    assert not any(map(world.is_outdated, DAYS))


def test_a_day_is_due_when_the_owner_of_its_id_was_corrected(make_world: Callable[[], World]) -> None:
    world = make_world()
    for day in DAYS[:2]:
        world.deliver(day, [("a", 0)])
    world.run(NOTHING_SENT)
    world.deliver(DAYS[0], [("a", 1)])
    world.ingest(DAYS[0])
    assert world.is_outdated(DAYS[1])
    world.ingest(DAYS[1])
    reasons = world.pipeline.lake.read(REJECTED_SUBMISSIONS, DAYS[1])["reason"].to_pylist()
    assert reasons == ["conflicting_submission_id"]


def test_a_row_that_was_sent_stays_with_its_day(make_world: Callable[[], World]) -> None:
    world = make_world()
    world.deliver(DAYS[0], [("a", 0)])
    world.run(Run(DAYS, frozenset(), frozenset()))
    world.deliver(DAYS[0], [])
    world.deliver(DAYS[1], [("a", 0)])
    (first, second), _ = plan_days(world.pipeline, DAYS[:2])
    assert (first.calls_to_make, second.calls_to_make, second.rejected.total()) == (0, 0, 1)
    assert world.run(Run(DAYS[:2], frozenset(), frozenset())) == {day: set() for day in DAYS[:2]}
    assert not any(map(world.is_outdated, DAYS))


def test_the_command_line_sends_what_swapped_days_in_one_run(
    landing: Landing,
    pipeline: Pipeline,
    simulator: Simulator,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over days of one run and of two: the first day wants an id that a later day gives up."""
    monkeypatch.setattr(partitions, "BACKFILL_DAYS_PER_RUN", 2)
    rows = {key: landing.submission(key, 2 * n) for n, key in enumerate("abc")}
    for day, key in zip(DAYS, "abc", strict=True):
        landing.manifest(day, [rows[key]])
        ingest_partition(landing=landing.root, lake=pipeline.lake, date=day)
    for day, key in zip(DAYS, "bca", strict=True):
        landing.manifest(day, [rows[key]])
    plans, _ = plan_days(pipeline, DAYS)
    assert [(plan.submissions, plan.calls_to_make) for plan in plans] == [(1, 1)] * 3
    assert run_partitions(pipeline, DAYS, instance, publish=False) == []
    assert dict(simulator.received) == {"a": 1, "b": 1, "c": 1}
    assert [pipeline.lake.read(SUBMISSIONS, day)["submission_id"].to_pylist() for day in DAYS] == [
        ["b"],
        ["c"],
        ["a"],
    ]
    assert due_days(pipeline, until=date(2024, 9, 3)).days == []
    assert json.loads(pipeline.lake.metadata(SUBMISSIONS, DAYS[0])["owners"]) == {}
