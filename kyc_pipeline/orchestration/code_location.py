"""The code location's name and module. Imports no Dagster, so that a command's help needs none."""

from typing import Final

LOCATION: Final = "kyc_pipeline"
"""The code location's name, also in `workspace.yaml` and `pyproject.toml`: they share schedules and runs."""
MODULE: Final = "kyc_pipeline.definitions"
