"""`kyc-pipeline simulator`: the bundled DeepXL-compatible server."""

import asyncio
import signal
from pathlib import Path

import click

from kyc_pipeline.errors import KycError


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; beyond loopback only for made-up documents, because nothing is encrypted.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8417, show_default=True, help="Port; 0 for any free one."
)
@click.option("--token", default=None, help="The accepted credential; by default, any.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all scores.")
@click.option(
    "--latency-ms", type=click.FloatRange(0), default=0.0, show_default=True, help="Median response time."
)
@click.option(
    "--store", type=click.Path(dir_okay=False, path_type=Path), help="JSONL file that keeps the records."
)
def simulator(
    host: str, port: int, token: str | None, seed: int, latency_ms: float, store: Path | None
) -> None:
    """Run the DeepXL simulator until it is interrupted.

    A pipeline on another host needs DEEPXL_HTTP_HOST.
    """
    asyncio.run(_serve(host, port, token, seed, latency_ms, store))


async def _serve(
    host: str, port: int, token: str | None, seed: int, latency_ms: float, store: Path | None
) -> None:
    # Imported here so that `kyc-pipeline simulator --help` loads no HTTP server.
    from kyc_pipeline.deepxl.simulator import Simulator

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server = Simulator(token=token, seed=seed, latency_ms=latency_ms, store=store)
    try:
        url = await server.start(port, host)
    except OSError as error:
        raise KycError(
            f"the simulator cannot listen on {host}:{port} ({error.strerror or error}): choose another --port"
        ) from None
    click.echo(f"DeepXL simulator on {url}")
    try:
        await stop.wait()
    finally:
        await server.stop()
