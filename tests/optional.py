"""What some tests need and a machine may lack: they are skipped with one line there, but never in CI."""

import importlib
import os
from typing import Any, NoReturn

import pytest


def absent(what: str) -> NoReturn:
    """Skips the test; in CI, which installs everything, fails it."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


def optional_module(name: str) -> Any:
    """The imported module."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        absent(name)
