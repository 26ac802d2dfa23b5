"""Responses that leave the ledger are in the lake, whatever is killed, and come back when they are needed."""

import os
import signal
from collections import Counter
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.lake import atomic
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.ledger import offload as module
from kyc_pipeline.ledger import transfer
from kyc_pipeline.ledger.audit import AuditTrail, Author, read_trail
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import InvariantBroken, Ledger, WrongLedger
from kyc_pipeline.ledger.leases import LeaseLost, acquire_lease, hold, release_lease
from kyc_pipeline.ledger.models import AttemptResult, Claim, ClaimResult, State
from kyc_pipeline.ledger.offload import Offloaded, check_offloaded, offload, offloaded_dates, recall
from kyc_pipeline.ledger.schema import leases, submissions
from kyc_pipeline.ledger.times import Clock, now, since_boot
from kyc_pipeline.ledger.upkeep import vacuum
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from tests.unit.verify import children
from tests.unit.verify.world import DATE, World, is_complete

IDS = [f"s-{number:02}" for number in range(12)]


def offload_day(lake: Lake, ledger: Ledger) -> Offloaded:
    trail = AuditTrail(ledger, lake, Author("somebody"), lambda: Pseudonymizer("k" * 32))
    with hold(ledger, DATE, "maintenance") as held:
        return offload(lake, ledger, held.lease, trail)


def in_ledger(ledger: Ledger) -> dict[str, str]:
    """The responses that the ledger has."""
    query = sa.select(submissions.c.submission_id, submissions.c.response)
    with ledger.read() as connection:
        rows = connection.execute(query.where(submissions.c.response.is_not(None))).tuples()
        return {key: str(text) for key, text in rows}


def in_lake(world: World) -> dict[str, str]:
    return {key: row["response"] for key, row in world.responses().items() if row["response"]}


@pytest.fixture
def verified(world: World, simulator: Simulator) -> World:
    """A world on each database whose day is verified."""
    world.server = simulator.url
    world.submit(*IDS)
    world.verify()
    return world


def test_a_finished_day_keeps_everything_but_the_texts(verified: World, simulator: Simulator) -> None:
    world, before = verified, in_lake(verified)
    assert in_ledger(world.ledger) == before
    assert offload_day(world.lake, world.ledger) == Offloaded(len(IDS), kept=0)
    assert (in_ledger(world.ledger), offloaded_dates(world.ledger)) == ({}, {DATE})
    assert check_offloaded(world.lake, world.ledger) == len(IDS)
    assert offload_day(world.lake, world.ledger) == Offloaded(0, kept=0)
    [first, _] = read_trail(world.ledger)
    assert (first.action, first.details) == ("offload", f'{{"date": "{DATE}", "responses": {len(IDS)}}}')
    version = world.lake.version(VERIFICATION_RESPONSES, DATE)
    world.verify(run_id="again")
    assert world.lake.version(VERIFICATION_RESPONSES, DATE) == version
    assert simulator.received.total() == len(IDS)


def test_the_texts_are_back_before_the_partition_is_replaced(verified: World, simulator: Simulator) -> None:
    world, before = verified, in_lake(verified)
    offload_day(world.lake, world.ledger)
    world.submit(*IDS, "late")
    assert world.verify(run_id="late").calls == 1
    assert (simulator.received.total(), offloaded_dates(world.ledger)) == (len(IDS) + 1, set())
    now = in_lake(world)
    assert before.items() < now.items()
    assert in_ledger(world.ledger) == now
    offload_day(world.lake, world.ledger)
    world.submit(*IDS)  # and in a run without a call
    assert world.verify(run_id="fewer").calls == 0
    assert in_ledger(world.ledger) == now
    assert in_lake(world) == before


@pytest.mark.parametrize("damage", ["lost", "changed", "unreadable"])
def test_what_the_lake_lost_is_neither_sent_nor_replaced(
    verified: World, simulator: Simulator, damage: str
) -> None:
    world = verified
    offload_day(world.lake, world.ledger)
    path = Path(world.lake.path(VERIFICATION_RESPONSES, DATE))
    content = path.read_bytes()
    if damage == "lost":
        path.unlink()
    elif damage == "unreadable":
        path.write_bytes(content[:-100])
    else:
        rows = world.lake.read(VERIFICATION_RESPONSES, DATE).to_pylist()
        rows[3]["response"] = rows[4]["response"]
        world.lake.write(VERIFICATION_RESPONSES, DATE, rows)
    if damage != "unreadable":  # that ends any run with something to send, wherever the responses are
        world.submit(*IDS, "late")
    refused = pytest.raises(WrongLedger, match=r"moved to the lake.*restore .*part-0.parquet from a backup")
    with refused:
        check_offloaded(world.lake, world.ledger)
    with refused:
        world.verify(run_id="refused")
    path.write_bytes(content)
    world.submit(*IDS, "late")
    assert world.verify(run_id="restored").calls == 1
    assert simulator.received.total() == len(IDS) + 1
    assert in_ledger(world.ledger) == in_lake(world)


def test_only_what_the_lake_has_leaves_the_ledger(verified: World) -> None:
    world = verified
    rows = world.lake.read(VERIFICATION_RESPONSES, DATE).to_pylist()
    rows[0]["response"] = rows[1]["response"]
    rows[2]["response"] = None
    world.lake.write(VERIFICATION_RESPONSES, DATE, rows[:-1])
    assert offload_day(world.lake, world.ledger) == Offloaded(len(IDS) - 3, kept=3)
    assert sorted(in_ledger(world.ledger)) == [IDS[0], IDS[2], IDS[-1]]
    assert offloaded_dates(world.ledger, only_finished=True) == set()
    assert not list(read_trail(world.ledger))


def test_without_the_lease_nothing_moves(verified: World) -> None:
    world = verified
    trail = AuditTrail(world.ledger, world.lake, Author("somebody"), lambda: Pseudonymizer("k" * 32))
    lost = acquire_lease(world.ledger, DATE, "slow")
    with world.ledger.write() as connection:
        connection.execute(sa.update(leases).values(token="of another run"))
    with pytest.raises(LeaseLost):
        offload(world.lake, world.ledger, lost, trail)
    assert len(in_ledger(world.ledger)) == len(IDS)
    with world.ledger.write() as connection:
        connection.execute(sa.delete(leases))
    offload_day(world.lake, world.ledger)
    with pytest.raises(LeaseLost):
        recall(world.lake, world.ledger, lost)
    assert not in_ledger(world.ledger)


def test_the_space_is_free_again(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        lease = acquire_lease(ledger, DATE, "run")
        claims = [Claim(f"s-{number:03}", "c") for number in range(200)]
        text = "x" * 1300
        commit(ledger, lease, claims, [])
        results = [
            ClaimResult(claim, State.COMPLETED, AttemptResult.RESPONDED, billable=True, response=text)
            for claim in claims
        ]
        commit(ledger, lease, [], results)
        release_lease(ledger, lease)
        row = {"outcome": "completed", "attempts": 1, "billable_calls": 1, "content_sha256": "c"}
        rows = [row | {"submission_id": claim.submission_id, "response": text} for claim in claims]
        lake.write(VERIFICATION_RESPONSES, DATE, rows)
        file = tmp_path / "ledger.sqlite"
        size = file.stat().st_size
        offload_day(lake, ledger)
        vacuum(ledger)
        assert file.stat().st_size < size / 2


def test_the_database_refuses_to_lose_a_response(verified: World) -> None:
    with pytest.raises(InvariantBroken, match="only for the lake"), verified.ledger.write() as connection:
        connection.execute(sa.update(submissions).values(response=None))


def test_a_ledger_moves_and_is_restored_with_what_only_the_lake_has(
    verified: World, simulator: Simulator, tmp_path: Path
) -> None:
    world, before = verified, in_lake(verified)
    offload_day(world.lake, world.ledger)
    with Ledger(f"sqlite:///{tmp_path / 'moved.sqlite'}") as moved:
        transfer.move(world.lake, world.ledger, moved)
        assert check_offloaded(world.lake, moved) == len(IDS)
        with Ledger(f"sqlite:///{tmp_path / 'from-the-lake.sqlite'}") as made:
            assert transfer.complete_from_lake(world.lake, made) == len(IDS)
            assert (
                in_ledger(made) == before
            )  # as a ledger without the backup: the next offload compares again
        lease = acquire_lease(moved, DATE, "run")
        assert recall(world.lake, moved, lease) == len(IDS)
        assert in_ledger(moved) == before
        release_lease(moved, lease)


def move_to_and_fro(root: str, ledger_url: str, die_at: int) -> None:
    """Offloads and recalls the day, in small transactions; kills this process in the `die_at`-th commit."""
    setattr(module, "_ROWS", 3)  # noqa: B010
    world = World(Path(root), ledger_url=ledger_url)
    commits = 0

    def count(_: Any) -> None:
        nonlocal commits
        commits += 1
        if commits == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "commit", count)
    while True:
        offload_day(world.lake, world.ledger)
        with hold(world.ledger, DATE, "recall") as held:
            recall(world.lake, world.ledger, held.lease)


def test_killed_in_any_commit(verified: World, processes: ForkServerContext) -> None:
    """The commit is the database's call that follows: it may or may not have taken place."""
    world, before = verified, in_lake(verified)
    seen = set()
    for die_at in range(1, 18):
        child = processes.Process(
            target=move_to_and_fro,
            args=(str(world.root), world.settings.kyc_ledger_url.get_secret_value(), die_at),
        )
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert in_lake(world) == before
        left = in_ledger(world.ledger)
        assert left.items() <= before.items()
        seen.add(len(left))
        assert check_offloaded(world.lake, world.ledger) == len(IDS) - len(left)
    assert len(seen) > 2  # it died half-way, too
    offload_day(world.lake, world.ledger)
    assert (in_ledger(world.ledger), offloaded_dates(world.ledger, only_finished=True)) == ({}, {DATE})


@pytest.mark.parametrize("moment", ["first write", "last write", "rename"])
def test_a_suspended_run_does_not_replace_what_only_the_lake_has(
    verified: World, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """While it sleeps, just before a rename, another run takes its day over and the day is offloaded."""
    world = verified
    another = World(world.root, simulator.url, world.ledger_url)
    sync, replace, writes, away = atomic.sync, os.replace, 0, 0
    clock = Clock(lambda: now() + away, lambda: since_boot() + away)
    world.ledger.close()
    world.ledger = Ledger(world.settings.kyc_ledger_url, clock=clock)

    def sleep() -> None:
        nonlocal writes, away
        writes += 1
        if writes != (1 if moment == "first write" else 2):
            return
        monkeypatch.undo()
        away = children.DAY
        with another.ledger.write() as connection:
            connection.execute(sa.delete(leases))
        with another.ledger:
            another.submit(*IDS, "late", "later")
            assert is_complete(another.verify(run_id="another"))
            assert offload_day(another.lake, another.ledger) == Offloaded(len(IDS) + 2, kept=0)

    def slow_sync(path: atomic.StrPath) -> None:
        sync(path)
        if VERIFICATION_RESPONSES.name in str(path) and atomic.DRAFT_PREFIX in str(path):
            sleep()

    def slow_replace(source: str, target: str) -> None:
        if VERIFICATION_RESPONSES.name in source and atomic.DRAFT_PREFIX in source:
            sleep()
        replace(source, target)

    world.submit(*IDS, "late")
    if moment == "rename":
        monkeypatch.setattr(os, "replace", slow_replace)
    else:
        monkeypatch.setattr(atomic, "sync", slow_sync)
    with pytest.raises(LeaseLost, match="was taken over by another run"):
        world.verify(run_id="sleeper")
    assert writes == (1 if moment == "first write" else 2)
    assert check_offloaded(world.lake, world.ledger) == len(IDS) + 2
    assert simulator.received == Counter([*IDS, "late", "later"])
