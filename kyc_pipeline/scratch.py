"""Temporary folders, one per operation. Maintenance removes those that a killed process left."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PREFIX: Final = "kyc-scratch-"


def scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """A new folder that only this user can open; the context manager removes it."""
    return tempfile.TemporaryDirectory(prefix=_PREFIX)


def scratch_folders() -> Iterator[Path]:
    """The scratch folders of all processes on this machine, those in use included."""
    return Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")
