"""Simulated worlds hold; each fault that is put back is found; a seed replays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.effort import tries
from tests.simulation.many import simulate_all
from tests.simulation.mutations import MUTATIONS
from tests.simulation.world import Violation, simulate, simulation

pytestmark = pytest.mark.no_cover
SEEDS = 100
MOST = 500
"""A fault must be found within so many seeds, from its own on."""


@pytest.fixture(autouse=True)
def no_cover_in_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make coverage` does not measure the simulation: it would have to follow greenlets, at a high price."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


def test_worlds_hold() -> None:
    for _, text in simulate_all(range(tries(SEEDS))):
        pytest.fail(text, pytrace=False)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_put_back_is_found(name: str) -> None:
    mutation = MUTATIONS[name]
    with simulation(), mutation.applied():
        for seed in range(mutation.seed, mutation.seed + MOST):
            try:
                simulate(seed, mutation.faults)
            except Violation:
                return
    pytest.fail(f"not found in {MOST} seeds: {name}")


def test_a_seed_replays_in_another_process() -> None:
    seed = 11
    with simulation():
        log = simulate(seed).kernel.log
    assert len(log) > 10
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
    again = subprocess.run(
        command,
        env=os.environ | {"PYTHONHASHSEED": "77"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout.splitlines() == log
