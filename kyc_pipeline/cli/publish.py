"""`kyc-pipeline publish`: builds and publishes warehouse and report from the lake, through Dagster."""

from functools import partial

import click

from kyc_pipeline.cli.backfill import output_paths
from kyc_pipeline.cli.dagster_home import open_instance
from kyc_pipeline.cli.local_run import run_partitions
from kyc_pipeline.cli.options import force_option, is_verbose
from kyc_pipeline.errors import KycError, in_one_line
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.settings import load_settings


@click.command()
@force_option
@click.pass_context
def publish(context: click.Context, force: bool) -> None:
    """Build and publish the warehouse and the report from the lake. Makes no call.

    Nothing is built if both are up to date.
    """
    settings = load_settings()
    pipeline = Pipeline(settings)
    pipeline.check_lake()
    failures = run_partitions(
        pipeline,
        [],
        open_instance(),
        force=force,
        verbose=is_verbose(context),
        announce=click.echo,
        warn=partial(click.echo, err=True),
    )
    if failures:
        raise KycError(in_one_line(failures))
    click.echo(output_paths(settings))
