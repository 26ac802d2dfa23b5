"""What DuckDB prints of its own accord."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kyc_pipeline

DRAWS = "connect().execute(\"SELECT current_setting('enable_progress_bar')\").fetchone()"


@pytest.mark.parametrize(
    ("connect", "draws"), [("duckdb.connect", True), ("kyc_pipeline.quiet_duckdb.connect", False)]
)
def test_progress_is_drawn_only_without_us(connect: str, draws: bool) -> None:
    module = connect.removesuffix(".connect")
    code = f"import {module}; print(*{module}.{DRAWS})"
    # As Dagster starts a run: without a script.
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == str(draws)


def test_every_connection_is_quiet() -> None:
    for path in Path(kyc_pipeline.__file__).parent.rglob("*.py"):
        if path.name != "quiet_duckdb.py":
            assert not re.search(r"(?<!`)\bduckdb\.connect\(", path.read_text(encoding="utf-8")), path
