"""`kyc-pipeline ledger`: a lost ledger is restored or moved, and no call is paid again."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from kyc_pipeline.cli.held import held
from kyc_pipeline.cli.ledger import ledger as command
from kyc_pipeline.cli.legal_hold import legal_hold
from kyc_pipeline.cli.reopen import reopen
from kyc_pipeline.deepxl.simulator import Simulator, running_simulator
from kyc_pipeline.deepxl.simulator.faults import Resets
from kyc_pipeline.erasure.ledger_store import LedgerErasure
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.audit import problems, read_trail
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.decisions import resolve_held
from kyc_pipeline.ledger.identity import bind
from kyc_pipeline.ledger.legal_holds import read_holds
from kyc_pipeline.ledger.vendor_deletions import VendorRecord, read_register, register
from kyc_pipeline.privacy.erased import Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from tests.unit.verify.world import DATE, TOKEN, World

LATER = "2024-09-02"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def world(paid: World) -> World:
    """Two days are paid for; `backup.sqlite` knows the first."""
    shutil.copy(paid.root / "ledger.sqlite", paid.root / "backup.sqlite")
    paid.submit("c", date=LATER)
    paid.verify(LATER)
    paid.ledger.close()
    return paid


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `ledger` and returns its exit code and what it says."""
    monkeypatch.setenv("KYC_HOME", str(world.root))
    monkeypatch.setenv("KYC_LAKE", "lake")
    monkeypatch.setenv("KYC_LEDGER_URL", "sqlite:///ledger.sqlite")

    def run(*arguments: str, group: object = command) -> tuple[int, str]:
        result = CliRunner().invoke(group, arguments)  # type: ignore[arg-type]
        return result.exit_code, result.output or str(result.exception)

    return run


def test_a_lost_ledger_is_restored_from_backup_and_lake(world: World, run: Run, simulator: Simulator) -> None:
    file = world.root / "ledger.sqlite"
    file.unlink()
    take_back = ("--submission", "a", "--reason", "the address was wrong")
    for arguments, group in ((("check",), command), (("list",), held), (take_back, reopen)):
        code, text = run(*arguments, group=group)
        assert (code, "there is no ledger" in text) == (1, True)
    assert not file.exists()
    backup = str(world.root / "backup.sqlite")
    code, text = run("restore", backup)
    assert (code, "completed with 1 outcome from the lake" in text) == (0, True)
    code, text = run("restore", backup)
    assert (code, "add --replace" in text) == (1, True)
    content = file.read_bytes()
    for wrong, problem in (("no-such-file", "there is no backup"), (__file__, "file is not a database")):
        code, text = run("restore", wrong, "--replace")
        assert (code, problem in text, __file__ in text or "no-such" in text) == (1, True, True)
        assert file.read_bytes() == content, "it stays in use"
    code, text = run("restore", backup, "--replace")
    assert (code, "the former ledger is" in text) == (0, True)
    code, text = run("check")
    assert (code, "completed   3" in text, "offloaded   0 responses" in text) == (0, True, True)
    again = World(world.root, simulator.url)
    assert [again.verify(date).calls for date in (DATE, LATER)] == [0, 0]


def test_a_ledger_is_made_from_the_lake_alone(world: World, run: Run, simulator: Simulator) -> None:
    (world.root / "ledger.sqlite").unlink()
    code, text = run("restore")
    assert (code, "completed with 3 outcomes from the lake" in text) == (0, True)
    again = World(world.root, simulator.url)
    again.submit("c", "d", date=LATER)
    assert again.verify(LATER).calls == 1
    assert set(simulator.received.values()) == {1}


def test_a_restore_keeps_what_people_did_since_the_backup(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYC_PSEUDONYM_KEY", "0123456789abcdef" * 2)
    backup = str(world.root / "backup.sqlite")
    first, second = (("--tag", f"customerId={number}", "--reason", "a trial") for number in (1, 2))
    assert run("add", *first, group=legal_hold)[0] == 0
    shutil.copy(world.root / "ledger.sqlite", backup)
    assert run("remove", *first, group=legal_hold)[0] == 0
    assert run("add", *second, group=legal_hold)[0] == 0
    pseudonyms = Pseudonymizer("0123456789abcdef" * 2)
    with Ledger(f"sqlite:///{world.root / 'ledger.sqlite'}") as ledger:
        before = [row.action for row in read_trail(ledger)]
        holds = read_holds(ledger)
        register(ledger, {"x": VendorRecord({7}, calls=1)}, {"x": "p-x"}, "R-1")
        LedgerErasure(ledger).remember([Tombstone.of_tag(pseudonyms, "customerId", "3")])
        LedgerErasure(ledger).finish([Tombstone.of_tag(pseudonyms, "customerId", "3")])

    code, text = run("restore", backup, "--replace")
    assert code == 0, text
    assert (
        "kept of the former ledger: 1 legal hold, 1 vendor deletion, 2 newer entries of the audit trail, "
        "1 newer tombstone" in text
    )
    assert "repeat one of these erasures" in text
    assert "audit trail lacks" not in text
    with Ledger(f"sqlite:///{world.root / 'ledger.sqlite'}") as ledger:
        assert [row.action for row in read_trail(ledger)] == [*before, "ledger-restore"]
        assert read_holds(ledger) == holds
        assert [row.verification_ids for row in read_register(ledger)] == ["7"]
        assert [each.finished for each in LedgerErasure(ledger).tombstones()] == [False]
        assert problems(world.lake, ledger)[0] == []

    # The ledger is lost: only the lake knows that something is missing.
    (world.root / "ledger.sqlite").unlink()
    code, text = run("restore", backup)
    assert code == 0, text
    assert "the audit trail lacks 3 entries: repeat the erasures, legal holds" in text


def test_a_restore_that_was_killed_is_repeated(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at three moments, it keeps what the first former ledger had, and no half of a ledger is left."""
    monkeypatch.setenv("KYC_PSEUDONYM_KEY", "0123456789abcdef" * 2)
    file, backup = world.root / "ledger.sqlite", str(world.root / "backup.sqlite")
    assert run("add", "--tag", "customerId=1", "--reason", "a trial", group=legal_hold)[0] == 0
    code = (
        "import os, signal, sys\n"
        "from kyc_pipeline.cli.ledger import ledger\n"
        "from kyc_pipeline.ledger import transfer\n"
        "setattr(transfer, sys.argv[1], lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
        "ledger(['restore', sys.argv[2], '--replace'])\n"
    )
    for moment in ("carry_over", "declare_restored", "put_into_place"):
        done = subprocess.run([sys.executable, "-c", code, moment, backup], check=False)
        assert done.returncode == -signal.SIGKILL
        assert not file.exists()
        assert run("check")[0] == 1
    answer, text = run("restore", backup, "--replace")
    assert answer == 0, text
    assert "kept of the former ledger: 1 legal hold" in text
    assert "audit trail lacks" not in text
    assert run("check")[0] == 0
    assert len(list(world.root.glob("ledger.sqlite.replaced-????????"))) == 1
    assert not list(world.root.glob("ledger.sqlite.draft*"))


@pytest.mark.parametrize("former", ["damaged", "of another lake", "older"])
def test_a_restore_says_why_it_keeps_nothing_of_the_former_ledger(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch, former: str
) -> None:
    monkeypatch.setenv("KYC_PSEUDONYM_KEY", "0123456789abcdef" * 2)
    file, backup = world.root / "ledger.sqlite", world.root / "backup.sqlite"
    older = file.read_bytes()
    assert run("add", "--tag", "customerId=1", "--reason", "a trial", group=legal_hold)[0] == 0
    shutil.copy(file, backup)
    if former == "damaged":
        content = file.read_bytes()
        file.write_bytes(content[:-8192] + bytes(8192))
    elif former == "older":
        file.write_bytes(older)
    else:
        file.unlink()
        with Ledger(f"sqlite:///{file}") as other:
            bind(Lake(str(world.root / "other")), other)
    code, text = run("restore", str(backup), "--replace")
    why = {
        "damaged": "is malformed; `kyc-pipeline ledger restore --replace` puts a backup in its place",
        "of another lake": "it belongs to another lake",
        "older": "it is not a later state of the restored ledger",
    }[former]
    assert code == 0, text
    assert "nothing of the former ledger was kept: " in text
    assert why in text, text
    with Ledger(f"sqlite:///{file}") as ledger:
        assert len(read_holds(ledger)) == 1


def test_a_moved_ledger_is_the_only_one_in_use(
    world: World, run: Run, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = f"sqlite:///{world.root / 'new.sqlite'}"
    code, text = run("move", "sqlite:///file:new.sqlite")
    assert (code, "URL must be a path" in text) == (1, True)
    code, text = run("move", "sqlite:///new.sqlite")  # as KYC_LEDGER_URL will have it
    assert (code, ["submissions", "3"] in [line.split() for line in text.splitlines()]) == (0, True)
    code, text = run("check")
    assert (code, "was moved: set KYC_LEDGER_URL" in text) == (1, True)
    monkeypatch.setenv("KYC_LEDGER_URL", "sqlite:///new.sqlite")
    assert run("check")[0] == 0
    again = World(world.root, simulator.url, new)
    again.submit("c", "d", date=LATER)
    assert again.verify(LATER).calls == 1
    assert set(simulator.received.values()) == {1}


def test_a_decision_is_not_written_into_a_ledger_that_was_moved_meanwhile(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command had opened it before."""
    with running_simulator(
        token=TOKEN, faults={"z": [Resets(record=True)]}, lookup_lag_seconds=1e9
    ) as lagging:
        again = World(world.root, lagging.url)
        again.submit("z", date="2024-09-03")
        assert again.verify("2024-09-03").held == 1
        again.ledger.close()

    def moved_first(*arguments: Any, **options: Any) -> None:
        assert run("move", f"sqlite:///{world.root}/new.sqlite")[0] == 0
        resolve_held(*arguments, **options)

    monkeypatch.setattr("kyc_pipeline.cli.held.resolve_held", moved_first)
    code, text = run("resolve", "--submission", "z", "--as", "abandon", group=held)
    assert (code, "was moved: set KYC_LEDGER_URL" in text) == (1, True)
