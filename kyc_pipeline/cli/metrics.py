"""`kyc-pipeline metrics`: serves /metrics for Prometheus until interrupted."""

import signal

import click

from kyc_pipeline.cli.dagster_home import open_instance
from kyc_pipeline.errors import KycError, UsageError, missing_extra, reason
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import load_settings


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Port, 0 for any; by default KYC_METRICS_PORT.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
def metrics(port: int | None, host: str) -> None:
    """Serve /metrics for Prometheus: queue, uncertain calls, spend, pace, breaker, outcomes.

    Each scrape reads the ledger and Dagster, and writes nothing. The server has no authentication: listen on
    loopback, or behind a proxy.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server

        from kyc_pipeline.orchestration.metrics import PipelineCollector
    except ModuleNotFoundError:
        raise missing_extra("kyc-pipeline metrics", "metrics") from None
    settings = load_settings()
    chosen = port if port is not None else settings.kyc_metrics_port
    if chosen is None:
        raise UsageError("give --port, or set KYC_METRICS_PORT")
    registry = CollectorRegistry()
    registry.register(PipelineCollector(Pipeline(settings), open_instance()))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server, thread = start_http_server(chosen, addr=host, registry=registry)
    except OSError as error:
        raise KycError(f"cannot listen on {host}:{chosen} ({reason(error)}): use another --port") from None
    click.echo(f"metrics on http://{host}:{server.server_port}/metrics")
    try:
        thread.join()
    except KeyboardInterrupt:
        server.shutdown()
        server.server_close()
