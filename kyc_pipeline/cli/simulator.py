"""`kyc-pipeline simulator`: the bundled DeepXL-compatible server, on loopback only."""

import asyncio
import signal
from pathlib import Path

import click

from kyc_pipeline.errors import KycError


@click.command()
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
def simulator(port: int, token: str | None, seed: int, latency_ms: float, store: Path | None) -> None:
    """Run the DeepXL simulator on 127.0.0.1 until it is interrupted."""
    asyncio.run(_serve(port, token, seed, latency_ms, store))


async def _serve(port: int, token: str | None, seed: int, latency_ms: float, store: Path | None) -> None:
    # Imported here so that `kyc-pipeline simulator --help` loads no HTTP server.
    from kyc_pipeline.deepxl.simulator import Simulator

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server = Simulator(token=token, seed=seed, latency_ms=latency_ms, store=store)
    try:
        url = await server.start(port)
    except OSError as error:
        raise KycError(
            f"the simulator cannot start on port {port}: {error.strerror or error}; choose another --port"
        ) from None
    click.echo(f"DeepXL simulator on {url}")
    try:
        await stop.wait()
    finally:
        await server.stop()
