"""`kyc-pipeline --version`: the code's identity, and the commit where it is known."""

import subprocess
import sys

import kyc_pipeline
from kyc_pipeline.analyze.sql_models import sql_folder
from kyc_pipeline.code_identity import code_identity, commit


def test_the_version_identifies_the_build() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "kyc_pipeline.cli", "--version"], check=True, capture_output=True, text=True
    )
    built_from = commit()
    assert shown.stdout.startswith(f"kyc-pipeline {kyc_pipeline.__version__}+")
    suffix = f" (commit {built_from})" if built_from else ""
    assert shown.stdout == f"kyc-pipeline {code_identity(sql_folder())}{suffix}\n"
    assert len(built_from.removesuffix("-dirty")) in (0, 40)
