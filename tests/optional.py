"""What some tests need and a machine may lack: they are skipped with one line there."""

import importlib
import os
from typing import Any, NoReturn

import pytest


def absent(what: str) -> NoReturn:
    """Skips the test; in CI, which installs everything, fails it."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


def denied(what: str) -> NoReturn:
    """Skips the test, in CI too: nothing that can be installed gives a machine these rights."""
    pytest.skip(f"this machine allows no {what}")


def optional_module(name: str) -> Any:
    """The imported module."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        absent(name)
