"""Starts Dagster's own commands in this process. The caller has checked the settings.

Dagster's console scripts are its public interface; their modules are not.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points


def run_dagster(script: str, arguments: Sequence[str]) -> None:
    """Runs a console script of Dagster, such as `dagster-daemon`, until it ends; it may exit the process."""
    [entry] = entry_points(group="console_scripts", name=script)
    sys.argv = [script, *arguments]
    entry.load()()
