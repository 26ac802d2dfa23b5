"""`kyc-pipeline ui`: Dagster's webserver behind `web_guard.py`, and its daemon.

Dagster has no public way to wrap its webserver, so this uses two private names (`dagster._core`). The version
is pinned, and an end-to-end test uses the UI.
"""

import contextlib
import ipaddress
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import dagster as dg

from kyc_pipeline.cli.dagster_home import open_instance
from kyc_pipeline.cli.free_port import require_free
from kyc_pipeline.cli.workspace import workspace_file, workspace_option
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.settings import Settings, is_loopback, load_settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port to listen on."
)
@click.option("--read-only", is_flag=True, help="For viewers: nobody can start, stop or change anything.")
@click.option("--no-daemon", is_flag=True, help="Run only the webserver; the daemon runs elsewhere.")
@click.option("--allow-host", "names", multiple=True, help="Another host name of the UI, such as a proxy's.")
@workspace_option
def ui(
    host: str, port: int, read_only: bool, no_daemon: bool, names: tuple[str, ...], workspace: Path | None
) -> None:
    """Show the Dagster UI, and run schedules and sensors.

    Other web pages in the same browser cannot use it. Anybody who can connect to the port can: set
    KYC_UI_PASSWORD if others can.
    """
    # Imported here because other commands do not need a webserver.
    from kyc_pipeline.cli.web_guard import LOOPBACK, WebGuard

    settings = load_settings()
    _check_address(host, settings)
    require_free(port, host)
    password = settings.kyc_ui_password
    hosts = {*LOOPBACK, _as_host(host), *names}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    instance = open_instance()
    with (
        workspace_file(workspace) as file,
        contextlib.nullcontext() if no_daemon else _daemon(file) as daemon,
    ):
        secret = None if password is None else password.get_secret_value()
        with _webserver(instance, file, read_only=read_only) as app:
            click.echo(f"Dagster UI on http://{_as_host(host)}:{port} (Ctrl-C ends it)")
            _serve(WebGuard(app, hosts=hosts, password=secret), host, port, daemon)


def _check_address(host: str, settings: Settings) -> None:
    if not is_loopback(host) and settings.kyc_ui_password is None:
        raise UsageError(
            f"--host {host}: other machines could start paid runs; set KYC_UI_PASSWORD, or keep 127.0.0.1 "
            "behind a proxy that authenticates users"
        )


def _as_host(host: str) -> str:
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            return f"[{host}]"
    return host


@contextlib.contextmanager
def _daemon(workspace: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Dagster's daemon; it ends with the block."""
    command = [sys.executable, "-m", "kyc_pipeline.cli", "daemon", "--workspace", str(workspace)]
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _webserver(instance: dg.DagsterInstance, workspace: Path, *, read_only: bool) -> "Iterator[ASGIApp]":
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context

    target = WorkspaceFileTarget(paths=[str(workspace)])
    with WorkspaceProcessContext(
        instance,
        target,
        version=dg.__version__,
        read_only=read_only,
        # As the daemon's: until it has loaded the definitions, a code server logs text on standard output.
        code_server_log_level="WARNING",
    ) as context:
        yield create_app_from_workspace_process_context(context)


def _serve(app: "ASGIApp", host: str, port: int, daemon: subprocess.Popen[bytes] | None) -> None:
    """Serves until a signal, or the daemon's end, which is an error."""
    import uvicorn

    # Without its own configuration, uvicorn logs as this process does.
    server = uvicorn.Server(uvicorn.Config(app, host, port, log_config=None, log_level="warning"))
    ended_first = False

    def watch(process: subprocess.Popen[bytes]) -> None:
        nonlocal ended_first
        process.wait()
        ended_first = not server.should_exit  # a signal sets it, and reaches the daemon too
        server.should_exit = True

    if daemon is not None:
        threading.Thread(target=watch, args=(daemon,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if ended_first:
        raise KycError("Dagster's daemon ended: see its messages above")
