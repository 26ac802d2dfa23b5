"""`kyc-pipeline daemon`: Dagster's daemon, which runs schedules, sensors and the queue of runs."""

from pathlib import Path

import click

from kyc_pipeline.cli.dagster_commands import run_dagster
from kyc_pipeline.cli.workspace import workspace_file, workspace_option
from kyc_pipeline.settings import load_settings


@click.command()
@workspace_option
def daemon(workspace: Path | None) -> None:
    """Run Dagster's daemon: schedules, sensors and the queue of runs.

    Run exactly one for all hosts. `kyc-pipeline ui` starts one, too, unless it has --no-daemon.
    """
    from kyc_pipeline.cli.dagster_home import open_instance

    load_settings()
    open_instance().dispose()
    with workspace_file(workspace) as file:
        run_dagster("dagster-daemon", ["run", "-w", str(file)])
