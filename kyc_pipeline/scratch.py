"""Temporary folders, one per operation. Maintenance removes those that a killed process left."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kyc_pipeline.errors import UsageError

_PREFIX: Final = "kyc-scratch-"


def scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """A new folder that only this user can open; the context manager removes it.

    Raises :class:`UsageError` if DuckDB could not open a file there.
    """
    if "?" in (folder := tempfile.gettempdir()):
        raise UsageError(
            f"the temporary folder {folder} has a ? in its path, which DuckDB cannot open: "
            "set TMPDIR to another"
        )
    return tempfile.TemporaryDirectory(prefix=_PREFIX)


def scratch_folders() -> Iterator[Path]:
    """The scratch folders of all processes on this machine, those in use included."""
    return Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")
