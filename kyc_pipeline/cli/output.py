"""The types of the options `--output`. In a module of its own, so that `query` does not load `options`.

None of them makes a folder: a missing one is probably mistyped, or was meant as a file.
"""

import os
from pathlib import Path
from typing import Any, cast

import click


class _OutputFile(click.Path):
    """A file, which need not exist, in a folder that does."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Fails with a usage error if its folder does not exist, or something else has its name."""
        path = cast("Path", super().convert(value, param, ctx))
        if not os.path.isdir(path.absolute().parent):  # `Path.is_dir` raises some errors
            self.fail(f"the folder {path.parent} does not exist: create it, or choose another", param, ctx)
        # What has this name is replaced, a device too.
        if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
            self.fail(f"{path} is not a regular file: choose another, or redirect the output", param, ctx)
        return path


OUTPUT_FILE = _OutputFile(dir_okay=False, path_type=Path)
OUTPUT_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
