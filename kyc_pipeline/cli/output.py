"""The types of the options `--output`. A module of its own, because `query` starts sooner without the others.

No option makes a folder: one that is missing is mistyped, or a file was given in place of a folder.
"""

from pathlib import Path
from typing import Any, cast

import click


class _OutputFile(click.Path):
    """A file, which need not exist, in a folder that does."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Fails with a usage error if its folder does not exist."""
        path = cast("Path", super().convert(value, param, ctx))
        if not path.absolute().parent.is_dir():
            self.fail(f"the folder {path.parent} does not exist", param, ctx)
        return path


OUTPUT_FILE = _OutputFile(dir_okay=False, path_type=Path)
OUTPUT_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
