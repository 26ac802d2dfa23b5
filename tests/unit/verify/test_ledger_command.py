"""`kyc-pipeline ledger`: a lost ledger is restored or moved, and no call is paid again."""

import shutil
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from kyc_pipeline.cli.held import held
from kyc_pipeline.cli.ledger import ledger as command
from kyc_pipeline.cli.reopen import reopen
from kyc_pipeline.deepxl.simulator import Simulator
from tests.unit.verify.world import DATE, World

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
    assert (code, "completed with 1 outcomes from the lake" in text) == (0, True)
    code, text = run("restore", backup)
    assert (code, "add --replace" in text) == (1, True)
    code, text = run("restore", backup, "--replace")
    assert (code, "the former ledger is" in text) == (0, True)
    code, text = run("check")
    assert (code, "completed   3" in text) == (0, True)
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


def test_a_moved_ledger_is_the_only_one_in_use(
    world: World, run: Run, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = f"sqlite:///{world.root / 'new.sqlite'}"
    code, text = run("move", new)
    assert (code, "submissions     3" in text) == (0, True)
    code, text = run("check")
    assert (code, "was moved: set KYC_LEDGER_URL" in text) == (1, True)
    monkeypatch.setenv("KYC_LEDGER_URL", "sqlite:///new.sqlite")
    assert run("check")[0] == 0
    again = World(world.root, simulator.url, new)
    again.submit("c", "d", date=LATER)
    assert again.verify(LATER).calls == 1
    assert set(simulator.received.values()) == {1}
