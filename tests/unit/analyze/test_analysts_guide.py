"""Everything that `docs/analysts.md` tells readers to type works."""

import re
import shlex
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from kyc_pipeline.analyze.build import build
from kyc_pipeline.analyze.sql_models import load_models
from kyc_pipeline.cli import cli
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.settings import Settings
from tests.unit.analyze.lake_maker import Check, Submission, write_day

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "analysts.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def warehouse(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A warehouse where the guide expects it, from the working directory."""
    path = tmp_path / "data" / "warehouse" / "kyc.duckdb"
    write_day(lake, "2024-09-08", [Submission(True, [Check()])])
    build(lake, path, run_id="run")
    (tmp_path / "sql").symlink_to(ROOT / "sql")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KYC_WAREHOUSE", raising=False)
    return path


def test_what_the_guide_says_to_type_works(warehouse: Path, tmp_path: Path) -> None:
    for code in blocks("sql"):
        with duckdb.connect(warehouse, read_only=True) as connection:
            for statement in duckdb.extract_statements(code):
                assert connection.execute(statement).fetchall()
    for code in blocks("python"):
        if "s3://" in code:  # test_object_place.py runs it with DuckDB 1.5
            continue
        names: dict[str, object] = {}
        exec(code, names)
        assert isinstance(names["warehouse"], duckdb.DuckDBPyConnection)
        names["warehouse"].close()
    assert len(names) > 1
    commands = [shlex.split(line) for code in blocks("console") for line in code.splitlines()]
    assert len(commands) >= 5
    for program, command, *arguments in commands:
        assert program == "kyc-pipeline"
        result = CliRunner().invoke(cli, [command, *arguments], catch_exceptions=False)
        assert result.exit_code == 0
        assert "--output" in arguments or result.output
    assert {path.suffix for path in tmp_path.glob("funnel.*")} == {".csv", ".json", ".parquet", ".xlsx"}
    assert (tmp_path / "companies.csv").is_file()
    assert (tmp_path / "data" / "report" / "evidence" / "evidence.html").is_file()


def test_what_the_guide_names_exists() -> None:
    for path in re.findall(r"sql/examples/\w+\.sql", GUIDE):
        assert (ROOT / path).is_file()
    for name in re.findall(r"KYC_\w+", GUIDE):
        assert name.lower() in Settings.model_fields
    limit = Settings(_env_file=None).kyc_warehouse_max_fact_rows
    assert f"({limit // 1_000_000} million)" in GUIDE
    facts = re.search(r"^A fact \(([^)]*)\)", GUIDE, re.MULTILINE)
    assert facts
    assert set(re.findall(r"`(\w+)`", facts[1])) <= {model.name for model in load_models()}
