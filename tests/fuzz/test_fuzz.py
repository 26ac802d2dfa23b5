"""A part of `make fuzz`: the same inputs in each run, in a process whose memory is measured."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.effort import tries

TRIES = {"manifests": 80, "labels": 80, "documents": 300, "responses": 250}
_COUNTS = re.compile(r": (\d+) inputs, (\d+) accepted, (\d+) MiB at most")


@pytest.mark.parametrize("target", TRIES)
def test_any_input_gives_one_clear_error_or_a_right_result(target: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--target", target, "--tries", str(tries(TRIES[target]))]
    ended = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={"TMPDIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-8000:]
    counts = _COUNTS.search(ended.stdout)
    assert counts is not None
    tried, accepted, _ = map(int, counts.groups())
    assert tried > tries(TRIES[target])
    assert 0 < accepted < tried


def test_every_target_is_tried() -> None:
    from tests.fuzz.targets import TARGETS  # the import takes a second, in each process that collects tests

    assert TARGETS.keys() == TRIES.keys()
