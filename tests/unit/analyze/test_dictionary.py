"""The generated files: the data dictionary and the column lineage."""

from pathlib import Path

import pytest

from kyc_pipeline.analyze import dictionary
from kyc_pipeline.analyze.quality import load_checks


def test_the_files_are_what_the_sql_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert dictionary.main(["--check"]) == 0, capsys.readouterr().err


def test_a_fault_is_one_line_and_changes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the lineage could be written, the page could not."""
    (tmp_path / "sql" / "checks").mkdir(parents=True)
    (tmp_path / "sql" / "checks" / "c.sql").write_text("-- Few.\n--\n-- counts: days\nSELECT {few}")
    monkeypatch.setattr("kyc_pipeline.analyze.quality.sql_folder", lambda: tmp_path / "sql")
    monkeypatch.setattr(dictionary, "load_checks", load_checks.__wrapped__)
    monkeypatch.setattr(dictionary, "lineage_file", lambda: tmp_path / "sql" / "lineage.json")
    assert dictionary.main([]) == 1
    assert capsys.readouterr() == ("", "sql/checks/c.sql: unknown parameter few\n")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["c.sql"]
