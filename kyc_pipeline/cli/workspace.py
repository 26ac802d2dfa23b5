"""The workspace file, which tells Dagster's webserver and daemon where the definitions are."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from kyc_pipeline.orchestration.code_location import LOCATION, MODULE
from kyc_pipeline.scratch import scratch_folder

_OWN: Final = f"""load_from:
  - python_module:
      module_name: {MODULE}
      location_name: {LOCATION}
"""

workspace_option = click.option(
    "--workspace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A workspace.yaml that names a code server elsewhere; by default, this process starts its own.",
)


@contextlib.contextmanager
def workspace_file(given: Path | None) -> Iterator[Path]:
    """The given file, or a temporary one by which each process loads the definitions itself."""
    if given is not None:
        yield given
        return
    with scratch_folder() as folder:  # not in DAGSTER_HOME, which may be read-only
        file = Path(folder) / "workspace.yaml"
        file.write_text(_OWN, encoding="utf-8")
        yield file
