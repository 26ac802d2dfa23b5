"""A ledger that is not the one it was: nothing is sent, the line says why, and nothing is forgotten."""

import contextlib
import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kyc_pipeline.deepxl.client import VerificationResponse
from kyc_pipeline.deepxl.echo import read_echo
from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.faults import Responds
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.identity import IDENTITY_FILE, read_lake_identity
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import Ledger, WrongLedger
from kyc_pipeline.ledger.decisions import list_held
from kyc_pipeline.ledger.identity import check_bond, read_identity
from kyc_pipeline.ledger.leases import LeaseLost, acquire_lease
from kyc_pipeline.ledger.models import Claim
from kyc_pipeline.ledger.queries import read_spend
from kyc_pipeline.ledger.times import now
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.look_up_first import discovery
from kyc_pipeline.verify.partition import work
from kyc_pipeline.verify.summary import Stopped
from tests.faults import Meanwhile
from tests.unit.killed_commit import kill_in_commit
from tests.unit.postgres import running_postgres
from tests.unit.verify.world import DATE, TOKEN, World

LATER = "2024-09-02"


def ledger_file(world: World) -> Path:
    return world.root / "ledger.sqlite"


def another(world: World, **changes: Any) -> World:
    """The same world in a process of its own."""
    return dataclasses.replace(world, **changes)


def gone(world: World) -> None:
    ledger_file(world).unlink()


def empty(world: World) -> None:
    ledger_file(world).write_bytes(b"")


def fresh(world: World) -> None:
    gone(world)
    with Ledger(world.settings.kyc_ledger_url) as ledger, ledger.write():
        pass


def truncated(world: World) -> None:
    content = ledger_file(world).read_bytes()
    ledger_file(world).write_bytes(content[: len(content) // 2])


def damaged(world: World) -> None:
    content = bytearray(ledger_file(world).read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    ledger_file(world).write_bytes(content)


def nameless(world: World) -> None:
    with contextlib.closing(sqlite3.connect(ledger_file(world))) as connection, connection:
        connection.execute("DELETE FROM identity")


def old_log(world: World) -> None:
    """A killed process of an older version left its log, and the file was restored from a backup."""
    old = world.root / "old.sqlite"
    shutil.copy(ledger_file(world), old)
    with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("UPDATE attempts SET error = 'in the log'")
        shutil.copy(f"{old}-wal", f"{ledger_file(world)}-wal")


def old_journal(world: World) -> None:
    """A killed process left its journal, and the file was replaced by a backup."""
    backup = ledger_file(world).read_bytes()
    with Ledger(world.settings.kyc_ledger_url) as ledger:
        for token in ("x", "y"):
            with ledger.write() as connection:
                connection.exec_driver_sql(f"UPDATE attempts SET error = '{token}'")
    kill_in_commit(ledger_file(world))
    ledger_file(world).write_bytes(backup)


def linked(world: World, loss: Callable[[World], None]) -> None:
    """The ledger is a link, and the loss is at the file that it leads to."""
    loss(world)
    folder = world.root / "elsewhere"
    folder.mkdir()
    for path in world.root.glob("ledger.sqlite*"):
        path.rename(folder / path.name)
    ledger_file(world).symlink_to(folder / "ledger.sqlite")


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        (partial(linked, loss=old_journal), "is the log of another database"),
        (partial(linked, loss=old_log), "is the log of another database"),
        (old_journal, "ledger.sqlite-journal beside .* is the log of another database"),
        (old_log, "the log of another database"),
        (nameless, "has lost its identity"),
        (gone, "there is no ledger"),
        (empty, "there is no ledger"),
        (fresh, "is not the ledger of the lake"),
        (truncated, "malformed|damaged"),
        (damaged, "malformed|damaged"),
    ],
)
@pytest.mark.parametrize("date", [DATE, LATER])
def test_nothing_is_paid_again_without_the_ledger(
    paid: World, simulator: Simulator, loss: Callable[[World], None], line: str, date: str
) -> None:
    before = paid.responses()
    loss(paid)
    left = {path.name: path.read_bytes() for path in paid.root.glob("ledger.sqlite")}
    paid.submit("c", date=LATER)
    world = another(paid)
    with pytest.raises(Exception, match=line) as raised:
        world.verify(date)
    assert "\n" not in str(raised.value)
    assert simulator.received.total() == 2
    assert paid.responses() == before
    world.ledger.close()
    assert {path.name: path.read_bytes() for path in paid.root.glob("ledger.sqlite")} == left


def test_the_journal_of_a_killed_process_takes_back_only_what_it_was_writing(
    paid: World, simulator: Simulator
) -> None:
    kill_in_commit(ledger_file(paid))
    world = another(paid)
    assert world.verify().calls == 0
    assert set(world.outcomes().values()) == {"completed"}
    assert read_identity(world.ledger).generation < 1000
    world.ledger.close()


def test_an_older_copy_is_recognised_though_the_lake_shows_nothing(paid: World, simulator: Simulator) -> None:
    """The calls of the second day are in no table of the lake: the run was killed."""
    shutil.copy(ledger_file(paid), paid.root / "backup.sqlite")
    world = another(paid)
    world.submit("c", date=LATER)
    world.verify(LATER)
    world.ledger.close()
    shutil.rmtree(paid.root / "lake" / "restricted" / "verification_responses" / f"date={LATER}")
    (paid.root / "backup.sqlite").replace(ledger_file(paid))
    with pytest.raises(WrongLedger, match="older than the lake"):
        another(paid).verify(LATER)
    assert simulator.received.total() == 3


def test_a_ledger_that_forgot_one_outcome_is_refused(paid: World, simulator: Simulator) -> None:
    with Ledger(paid.settings.kyc_ledger_url) as ledger, ledger.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER attempts_stay")
        for table in ("attempts", "submissions"):
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE submission_id = 'a'")
    with pytest.raises(WrongLedger, match=r"shows 1 outcome of 2024-09-01 \(such as a's\)"):
        another(paid).verify()
    assert simulator.received.total() == 2


def test_a_damaged_partition_is_named_and_can_be_moved_away(paid: World, simulator: Simulator) -> None:
    [file] = (paid.root / "lake").glob(f"restricted/verification_responses/date={DATE}/*.parquet")
    file.write_bytes(file.read_bytes()[:-100])
    paid.submit("a", "b", "c")
    again = another(paid)
    with pytest.raises(WrongLedger, match=rf"date={DATE}\S+ is damaged, .* move it away"):
        again.verify()
    assert simulator.received.total() == 2
    file.unlink()
    assert again.verify().calls == 1
    assert sorted(again.responses()) == ["a", "b", "c"]


def test_two_lakes_cannot_share_a_ledger(paid: World, tmp_path: Path, simulator: Simulator) -> None:
    other = World(tmp_path / "other", simulator.url, paid.settings.kyc_ledger_url.get_secret_value())
    other.submit("x")
    with pytest.raises(WrongLedger, match="belongs to another lake"):
        other.verify()
    assert simulator.received.total() == 2
    paid.submit("a", "b", "c")
    assert another(paid).verify().calls == 1


def test_a_lake_of_an_older_version_is_bound_only_to_a_ledger_that_knows_it(
    paid: World, simulator: Simulator
) -> None:
    (paid.root / "lake" / IDENTITY_FILE).unlink()
    with Ledger(paid.settings.kyc_ledger_url) as ledger:
        with ledger.write() as connection:
            connection.exec_driver_sql("UPDATE identity SET lake_id = NULL")
        paid.submit("c", date=LATER)
        assert another(paid).verify(LATER).calls == 1
        bound = read_lake_identity(paid.lake)
        assert bound is not None
        assert (bound.lake_id, bound.ledger_id) == (
            read_identity(ledger).lake_id,
            read_identity(ledger).ledger_id,
        )
        (paid.root / "lake" / IDENTITY_FILE).unlink()
    gone(paid)
    with pytest.raises(WrongLedger, match="there is no ledger"):
        check_bond(paid.lake, Ledger(paid.settings.kyc_ledger_url))
    fresh_one = another(paid, ledger_url=f"sqlite:///{paid.root / 'fresh.sqlite'}")
    with fresh_one.ledger.write():
        pass
    paid.submit("d", date="2024-09-03")
    with pytest.raises(WrongLedger, match="shows 2 outcomes"):
        fresh_one.verify("2024-09-03")


def remove(file: Path, backup: Path) -> None:
    file.unlink()


def rename_over(file: Path, backup: Path) -> None:
    backup.replace(file)


def copy_over(file: Path, backup: Path) -> None:
    shutil.copyfile(backup, file)


@pytest.mark.parametrize("how", [remove, rename_over, copy_over])
def test_a_ledger_that_changes_in_mid_run_ends_the_run(
    paid: World, how: Callable[[Path, Path], None]
) -> None:
    """Copied over in place, the file keeps its inode: its generation tells."""
    ids = [f"n-{number:02}" for number in range(12)]
    backup = paid.root / "backup.sqlite"
    shutil.copy(ledger_file(paid), backup)
    change = Meanwhile(lambda: how(ledger_file(paid), backup))
    with running_simulator(token=TOKEN, faults={"n-05": [change]}) as simulator:
        world = another(paid, server=simulator.url, options={"deepxl_max_concurrency": 1})
        world.submit(*ids, date=LATER)
        with pytest.raises((WrongLedger, LeaseLost)) as raised:
            world.verify(LATER)
        assert "\n" not in str(raised.value)
        sent = simulator.received.total()
        assert sent < len(ids)
        with pytest.raises(WrongLedger):
            another(world).verify(LATER)
        assert simulator.received.total() == sent
    if how is not copy_over:  # what the open file still knew is in the lake now
        assert list(world.outcomes(LATER).values()).count("completed") == 5


def test_postgres_without_fsync_is_refused(tmp_path: Path, simulator: Simulator) -> None:
    with running_postgres("-F") as server:
        world = World(tmp_path, simulator.url, server.create_database("unsafe"))
        world.submit("a")
        with pytest.raises(WrongLedger, match="fsync=off"):
            world.verify()
        world.ledger.close()
    assert simulator.received.total() == 0


def test_a_restored_ledger_looks_up_before_it_sends(paid: World) -> None:
    """The lost ledger had called for `c`, and `d` failed in the backup but was sent after it."""
    with running_simulator(token=TOKEN, faults={"d": [Responds(503)] * 5}) as simulator:
        world = another(paid, server=simulator.url)
        world.submit("d", date=LATER)
        assert world.verify(LATER).outcomes == {"failed": 1}
    with Ledger(paid.settings.kyc_ledger_url) as ledger, ledger.write() as connection:
        connection.exec_driver_sql(f"UPDATE identity SET restored_at = {now()}")
    with running_simulator(token=TOKEN) as simulator:
        lost = World(paid.root / "lost", simulator.url)
        lost.submit("c", "d", date=LATER)
        lost.verify(LATER)
        world = another(paid, server=simulator.url)
        world.submit("c", "d", "e", date=LATER)
        summary = world.verify(LATER)
        assert (summary.calls, summary.adopted) == (1, 2)
        assert world.outcomes(LATER) == {"c": "completed", "d": "completed", "e": "completed"}
        assert simulator.received == {"c": 1, "d": 1, "e": 1}
        assert read_spend(world.ledger, LATER).billable_calls == 3


def test_a_record_of_other_documents_is_no_response(paid: World) -> None:
    paid.submit("c", date=LATER)
    with paid.ledger as ledger:
        [[item]] = work(paid.lake, ledger, LATER, "hold")
        sizes = {"idFileSize": 1, "selfieFileSize": item.row["selfie_size"]}
        text = json.dumps({"result": {"verificationId": 7, "verified": True} | sizes})
        moment = datetime(2024, 9, 2, tzinfo=UTC)
        found = discovery(
            item, [VerificationResponse(200, text, read_echo(text), 7, True, moment, moment, 1.0)]
        )
        assert found.response is None
        lease = acquire_lease(ledger, LATER, "run")
        commit(ledger, lease, [], [found])
        assert [held.submission_id for held in list_held(ledger)] == ["c"]
        assert commit(ledger, lease, [Claim("c", item.row["content_sha256"])], []) == frozenset()


def test_nothing_is_sent_if_a_look_up_fails(paid: World) -> None:
    paid.submit("c", "d", date=LATER)
    with running_simulator(token=TOKEN, lookup=Responds(500)) as simulator:
        world = another(paid, server=simulator.url)
        with pytest.raises(KycError, match="nothing was sent"):
            world.verify(LATER, look_up_first=True)
        assert simulator.received.total() == 0
    assert set(world.outcomes(LATER).values()) == {"not_attempted"}


def test_a_look_up_first_needs_no_budget(paid: World) -> None:
    paid.submit("c", "d", date=LATER)
    with running_simulator(token=TOKEN) as simulator:
        lost = World(paid.root / "lost", simulator.url)
        lost.submit("c", date=LATER)
        lost.verify(LATER)
        summary = another(paid, server=simulator.url).verify(LATER, look_up_first=True, budget=CallBudget(0))
        assert (summary.calls, summary.adopted, summary.stopped) == (0, 1, Stopped.BUDGET)
