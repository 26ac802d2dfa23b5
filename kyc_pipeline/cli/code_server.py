"""`kyc-pipeline code-server`: the process that webserver and daemon ask for the project's definitions."""

import click

from kyc_pipeline.cli.dagster_commands import run_dagster
from kyc_pipeline.orchestration.code_location import LOCATION, MODULE
from kyc_pipeline.settings import load_settings


@click.command("code-server")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=4000, show_default=True, help="Port to listen on."
)
@click.option("--image", help="Container image for the runs that it starts on Kubernetes.")
def code_server(host: str, port: int, image: str | None) -> None:
    """Serve the project's definitions to webserver and daemon, and start runs.

    It has no authentication, and whoever can connect can run code: let only webserver and daemon reach its
    port. Run exactly one.
    """
    from kyc_pipeline.cli.dagster_home import open_instance

    load_settings()
    open_instance().dispose()  # so that what is wrong with it is one line
    # Not `dagster code-server start`, which adds a process only to load changed code: here, a restart does.
    arguments = ["api", "grpc", "-m", MODULE, "--location-name", LOCATION, "-h", host, "-p", str(port)]
    if image:
        arguments += ["--container-image", image]
    run_dagster("dagster", arguments)
