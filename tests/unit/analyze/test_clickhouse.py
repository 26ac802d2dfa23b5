"""The worked example of scale-out: ClickHouse runs three of the warehouse's models on the lake itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb

from kyc_pipeline.analyze.build import build
from kyc_pipeline.lake.storage import Lake
from tests.optional import optional_module
from tests.unit.analyze.lake_maker import Check, Submission, write_day

SCRIPT = Path(__file__).parents[3] / "deploy" / "clickhouse" / "models.py"
MODELS = ("pass_rates", "verified_rates", "failure_combinations")
CHILD = """
import sys
from chdb.session import Session
session = Session(sys.argv[1])
for statement in sys.stdin.read().split(";\\n"):
    if statement:
        session.query(statement)
for model in sys.argv[2:]:
    query = f"SELECT * FROM {model} SETTINGS output_format_json_quote_64bit_integers = 0"
    sys.stdout.write(str(session.query(query, "JSONEachRow")) + "\\0")
"""
"""Runs ClickHouse, in a process of its own: it brings its own allocator."""


def write_lake(lake: Lake) -> None:
    """Three days; the second and the third have submissions without a verdict."""
    passed, failed = Check("FACE_MATCH"), Check("FACE_MATCH", "FAIL", 0.2)
    for number, day in enumerate(("2024-09-01", "2024-09-02", "2024-09-03")):
        people = [Submission(True, [Check(), passed]) for _ in range(40)]
        people += [Submission(False, [Check("LIVENESS", "FAIL", 0.1), failed]) for _ in range(3 + number)]
        people += [Submission(False, [failed]), Submission(False, [Check(None, "REVIEW", None)])]
        people += [Submission(False, outcome="uncertain") for _ in range(number)]
        write_day(lake, day, people)


def translated(place: str, *models: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(SCRIPT), place, *models], capture_output=True, text=True, check=False
    )


def in_clickhouse(place: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    statements = translated(place, *MODELS).stdout
    command = [sys.executable, "-c", CHILD, str(folder), *MODELS]
    ended = subprocess.run(command, input=statements, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    parts = ended.stdout.split("\0")
    return {
        model: [json.loads(line) for line in part.splitlines()]
        for model, part in zip(MODELS, parts, strict=False)
    }


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row without the last digits of its floats: each engine has its own square root."""
    return {name: round(value, 12) if isinstance(value, float) else value for name, value in row.items()}


def in_duckdb(warehouse: Path) -> dict[str, list[dict[str, Any]]]:
    with duckdb.connect(warehouse, read_only=True) as connection:
        return {
            model: [
                {name: str(value) if name == "date" else value for name, value in row.items()}
                for row in connection.sql(f"FROM {model}").to_arrow_table().to_pylist()
            ]
            for model in MODELS
        }


def test_the_figures_are_the_same(tmp_path: Path) -> None:
    optional_module("chdb")
    lake = Lake(str(tmp_path / "lake"))
    write_lake(lake)
    build(lake, tmp_path / "kyc.duckdb", run_id="run")
    expected = in_duckdb(tmp_path / "kyc.duckdb")
    found = in_clickhouse(lake.root, tmp_path / "clickhouse")
    assert {model: [rounded(row) for row in rows] for model, rows in found.items()} == {
        model: [rounded(row) for row in rows] for model, rows in expected.items()
    }
    assert all(len(rows) >= 3 for rows in found.values())


def test_a_lake_in_an_object_store(s3_root: str, tmp_path: Path) -> None:
    optional_module("chdb")
    lake = Lake(s3_root)
    write_lake(lake)
    place = s3_root.replace("s3:/", os.environ["AWS_ENDPOINT_URL"])
    found = in_clickhouse(place, tmp_path / "clickhouse")
    assert [row["verified"] for row in found["verified_rates"]] == [40, 40, 40]


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    ended = translated(str(tmp_path), "pass_rate")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.strip() == "no model pass_rate: see sql/facts and sql/marts"
