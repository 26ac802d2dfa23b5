"""The fixture of the tests of `flatten`."""

from pathlib import Path

import pytest

from tests.unit.flatten.support import Day


@pytest.fixture
def day(tmp_path: Path) -> Day:
    """An empty lake to flatten in."""
    return Day(tmp_path / "lake")
