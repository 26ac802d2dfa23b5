"""Power cuts and failing disks under ledger, lake, key and publication (FUSE: needs root and libfuse)."""

import contextlib
import dataclasses
import errno
import itertools
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pytest

from kyc_pipeline.analyze.publish import new_draft, open_warehouse, publish
from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.errors import KycError, plain_line
from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.lake.atomic import sync
from kyc_pipeline.lake.tables import VERIFICATIONS
from kyc_pipeline.ledger import writer
from kyc_pipeline.ledger.database import Ledger, WrongLedger
from kyc_pipeline.ledger.decisions import list_held
from kyc_pipeline.ledger.transfer import set_aside
from kyc_pipeline.privacy.pseudonyms import load_pseudonymizer
from kyc_pipeline.verify.dispatcher import Timing
from tests.faults import Meanwhile
from tests.power_cut import journal
from tests.power_cut.journal import Event, Journal, Keep
from tests.unit.verify.world import DATE, QUICK, TOKEN, World

try:
    from tests.power_cut.disk import fail, mend
except (ImportError, OSError) as error:
    pytest.skip(f"mfusepy or libfuse is missing: {error}", allow_module_level=True)
if os.geteuid() or not os.path.exists("/dev/fuse"):
    pytest.skip("mounting needs root and /dev/fuse", allow_module_level=True)

IDS = ["a", "b", "c", "d"]
POSITIONS = int(os.environ.get("KYC_POWER_CUTS", "8"))
"""For each kind of cut or failure, spread over the run; a large number tries each position."""
CUT_AT = frozenset({"sync", "name"})
IMPATIENT = dataclasses.replace(QUICK, ledger_patience=0.0)
"""For a ledger that will not work again before the run ends."""
T = TypeVar("T")


def sample(positions: Sequence[T], share: float, count: int = POSITIONS) -> Sequence[T]:
    """Some of the positions, evenly spread; `share` of the distance between two of them comes first."""
    step = max(1, len(positions) // count)
    return positions[int(share * step) :: step]


@dataclass
class Place:
    """Folders of one test: the mounted disk, and what does not lie on it."""

    root: Path

    def __post_init__(self) -> None:
        self.mount_point.mkdir()
        self.landing = World(self.root / "outside").root / "landing"

    @property
    def mount_point(self) -> Path:
        return self.root / "disk"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def store(self) -> Path:
        """The simulator's records."""
        return self.root / "records"

    @contextlib.contextmanager
    def mounted(self, kind: str = "powercut") -> Iterator[None]:
        arguments = [str(self.mount_point), str(self.events), kind]
        command = [sys.executable, "-m", "tests.power_cut.disk", *arguments]
        with (self.root / "disk.log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not os.path.ismount(self.mount_point):
                if server.poll() is not None:
                    pytest.skip("cannot mount: " + (self.root / "disk.log").read_text(encoding="utf-8"))
            yield
        finally:
            subprocess.run(["umount", "-l", str(self.mount_point)], check=False, capture_output=True)
            server.kill()  # it waits for files that a failed run left open
            server.wait()

    def world(self, root: Path, server: str) -> World:
        options: dict[str, Any] = {
            "kyc_landing": self.landing,
            "kyc_warehouse": root / "warehouse" / "kyc.duckdb",
            "deepxl_max_concurrency": 2,
        }
        return World(root, server, options=options)


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of databases to publish, by version."""
    folder = tmp_path_factory.mktemp("builds")
    for version in (1, 2, 3):
        with duckdb.connect(str(folder / str(version))) as connection:
            connection.execute(f"CREATE TABLE version AS SELECT {version} AS number")
    return folder


def publish_version(world: World, builds: Path, version: int) -> None:
    with new_draft(world.settings.kyc_warehouse) as draft:
        shutil.copyfile(builds / str(version), draft)
        publish(draft, world.settings.kyc_warehouse)


def flatten(world: World) -> None:
    flatten_partition(world.lake, DATE, load_pseudonymizer(world.settings), world.settings.kyc_clear_tags)


def work(world: World, builds: Path, note: Callable[[str], None], timing: Timing = QUICK) -> None:
    """The work on a day's submissions, from the first call to the second publication."""
    try:
        world.verify(timing=timing)
    finally:
        world.ledger.close()
    flatten(world)
    note("flattened")
    for version in (1, 2):
        publish_version(world, builds, version)
        note(f"published {version}")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, builds: Path) -> tuple[Place, list[Event]]:
    """What happened to the disk in one day's work."""
    place = Place(tmp_path_factory.mktemp("recorded"))
    with place.mounted():
        note = Journal(place.events)
        faults = {key: [Meanwhile(partial(note.billed, key))] for key in IDS}
        with running_simulator(token=TOKEN, store=place.store, faults=faults) as simulator:
            world = place.world(place.mount_point, simulator.url)
            world.submit(*IDS)
            note.note("submitted")
            work(world, builds, note.note)
    return place, journal.read(place.events)


def end_holder(ledger: Path) -> None:
    """The holder of a lease ran before the machine restarted."""
    if not ledger.exists():
        return
    with contextlib.closing(sqlite3.connect(ledger)) as connection, contextlib.suppress(sqlite3.Error):
        connection.execute("UPDATE leases SET machine = 'boot-before/pid:1/time:1'")
        connection.commit()


def check_cut(place: Place, builds: Path, root: Path, billed: set[str], seen: set[str]) -> None:
    """Starts again with what is left in `root`, where DeepXL has billed `billed` and `seen` had happened."""
    store = root.with_suffix(".records")
    records = place.store.read_text(encoding="utf-8").splitlines()
    known = [line for line in records if any(f'"value":"{key}"' in line for key in billed)]
    store.write_text("".join(f"{line}\n" for line in known), encoding="utf-8")
    with running_simulator(token=TOKEN, store=store) as simulator:
        check_recovery(place.world(root, simulator.url), builds, simulator, seen)


def check_recovery(world: World, builds: Path, simulator: Simulator, seen: set[str]) -> None:
    """The next run goes on: nothing is lost, nothing is sent twice."""

    def bills() -> Counter[str]:
        tags = (tag for record in simulator.records for tag in record.tags)
        return Counter(tag.value for tag in tags if tag.name == "submissionId")

    billed = bills()
    end_holder(world.root / "ledger.sqlite")
    key_before = world.settings.pseudonym_key_file.exists() and load_pseudonymizer(world.settings).key_id
    assert key_before or not world.lake.exists(VERIFICATIONS, DATE)
    summary = world.verify(run_id="after")
    outcomes = world.outcomes()
    assert sorted(outcomes) == IDS
    assert max(bills().values(), default=0) <= 1
    assert {key for key, outcome in outcomes.items() if outcome == "completed"} == set(bills())
    held = {each.submission_id for each in list_held(world.ledger)}
    assert held == set(IDS) - set(bills())  # claimed, but never sent: a person decides
    assert summary.calls == len(bills()) - len(billed)
    flatten(world)
    assert not key_before or load_pseudonymizer(world.settings).key_id == key_before
    check_publication(world, builds, seen)
    world.ledger.close()


def check_publication(world: World, builds: Path, seen: set[str]) -> None:
    published = [version for version in (1, 2) if f"published {version}" in seen]
    if Path(world.settings.kyc_warehouse).exists():
        with open_warehouse(world.settings.kyc_warehouse) as warehouse:
            (number,) = warehouse.execute("SELECT number FROM version").fetchall()[0]
        assert number in (published[-1:] or [1]) or number == len(published) + 1
    else:
        assert not published
    publish_version(world, builds, 3)


@pytest.mark.parametrize("kind", ["nothing", "torn", "everything"])
def test_after_a_power_cut_nothing_is_lost_and_nothing_is_paid_again(
    recorded: tuple[Place, list[Event]], builds: Path, tmp_path: Path, kind: str
) -> None:
    place, events = recorded
    begin = events.index(("note", "submitted"))
    cuts = [number for number, event in enumerate(events) if number > begin and event[0] in CUT_AT]
    assert len(cuts) > 50
    keeps: dict[str, Callable[[int], Keep]] = {
        "nothing": lambda _: journal.nothing,
        "torn": lambda number: journal.torn(random.Random(number)),
        "everything": lambda _: journal.everything,
    }
    share = {"nothing": 0.0, "torn": 0.34, "everything": 0.67}[kind]
    for before, number in sample(list(itertools.pairwise([begin, *cuts, len(events)])), share):
        # Until the next sync, no call can leave whose claim a cut here would undo.
        gone = events[: before + 1]
        seen = {event[1] for event in gone if event[0] == "note"}
        billed = {event[1] for event in events[:number] if event[0] == "billed"}
        root = tmp_path / f"cut-{before}"
        journal.after_cut(gone, keeps[kind](before), root)
        try:
            check_cut(place, builds, root, billed, seen)
        except (AssertionError, KycError) as error:
            raise AssertionError(
                f"{kind}: cut after event {before}, {events[before][:3]}: {error}"
            ) from error


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "from then on"])
def test_after_a_failed_write_nothing_is_lost_and_nothing_is_paid_again(
    recorded: tuple[Place, list[Event]],
    builds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    lasts: bool,
) -> None:
    """The run goes on, or ends with one clear line; the next one goes on, on the same disk."""
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.0)
    _, events = recorded
    changes = [event for event in events[events.index(("note", "submitted")) :] if is_change(event)]
    share = {(errno.EIO, False): 0.0, (errno.EIO, True): 0.25, (errno.ENOSPC, False): 0.5}
    place, lines = Place(tmp_path), []
    with place.mounted():
        numbers = range(1, len(changes) + 1)
        for number in sample(numbers, share.get((code, lasts), 0.75), (POSITIONS + 1) // 2):
            root, seen = place.mount_point / str(number), set[str]()
            with running_simulator(token=TOKEN) as simulator:
                world = place.world(root, simulator.url)
                world.submit(*IDS)
                fail(place.mount_point, number, code, lasts=lasts)
                try:
                    work(world, builds, seen.add, IMPATIENT if lasts else QUICK)
                except (KycError, OSError) as error:
                    lines.append(plain_line(error))
                mend(place.mount_point)
                try:
                    check_recovery(place.world(root, simulator.url), builds, simulator, seen)
                except (AssertionError, KycError) as error:
                    raise AssertionError(f"change {number} failed, {lines[-1:]}: {error}") from error
    assert lines
    # SQLite does not say why it could not create a file.
    causes = (os.strerror(code), "disk I/O error", "disk is full", "cannot be opened or created")
    for line in lines:
        assert any(cause in line for cause in causes), line
        assert not line.startswith("unexpected")
        assert len(line.splitlines()) == 1


def is_change(event: Event) -> bool:
    """Whether it is one that `fail` counts; a new name stands for a new file, a link or a rename."""
    kind, *details = event
    return kind in ("write", "truncate", "sync") or (kind == "name" and details[2] is not None)


def test_a_ledger_that_was_set_aside_stays_aside(tmp_path: Path) -> None:
    place, sides = Place(tmp_path), ("", "-journal")
    with place.mounted():
        file = place.mount_point / "ledger.sqlite"
        # A damaged ledger may have a journal, which belongs to it.
        for side in sides:
            (place.mount_point / f"{file.name}{side}").write_bytes(b"content")
            sync(f"{file}{side}")
        sync(place.mount_point)
        Journal(place.events).note("begins")
        aside = set_aside(Ledger(f"sqlite:///{file}"))
        Journal(place.events).note("ends")
    assert aside is not None
    events = journal.read(place.events)
    begin, end = events.index(("note", "begins")), events.index(("note", "ends"))
    for number in range(begin, end + 1):
        root = tmp_path / f"cut-{number}"
        journal.after_cut(events[:number], journal.nothing, root)
        left = {path.name for path in root.iterdir()}
        moved = [side for side in sides if f"{aside.name}{side}" in left]
        assert moved in ([], ["-journal"], [*sides])
        assert left == {f"{(aside if side in moved else file).name}{side}" for side in sides}
    assert moved == [*sides]


def test_a_ledger_on_a_network_file_system_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.mounted(kind="sshfs"):
        world = place.world(place.mount_point, "http://127.0.0.1:9")
        world.submit("a")
        with pytest.raises(WrongLedger, match=r"is on a network file system \(fuse.sshfs\)"):
            list_held(world.ledger) or world.ledger.read().__enter__()
        assert not (place.mount_point / "ledger.sqlite").exists()
