"""The identity of the code changes with every file that decides what is made."""

import importlib.util
import shutil
from pathlib import Path

import pytest

import kyc_pipeline
from kyc_pipeline.analyze.sql_models import sql_folder


def identity_of(package: Path, sql: Path) -> str:
    """The identity that a copy of the package computes of itself."""
    spec = importlib.util.spec_from_file_location("copied", package / "code_identity.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.code_identity(sql))


@pytest.mark.parametrize(
    "changed",
    ["package/rules.py", "package/analyze/report/templates/report.css", "sql/marts/pass_rates.sql"],
)
def test_a_changed_file_changes_the_identity(tmp_path: Path, changed: str) -> None:
    package, sql = tmp_path / "package", tmp_path / "sql"
    skip_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(kyc_pipeline.__file__).parent, package, ignore=skip_caches)
    shutil.copytree(sql_folder(), sql)
    before = identity_of(package, sql)
    assert before == identity_of(package, sql)
    assert before.startswith(kyc_pipeline.__version__)
    with (tmp_path / changed).open("a") as file:
        file.write("\n")
    assert identity_of(package, sql) != before
