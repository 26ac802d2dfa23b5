"""Everything that Dagster loads."""

import dagster as dg

from kyc_pipeline.json_logs import log_as_json
from kyc_pipeline.orchestration.alerts.sensor import alerts_sensor
from kyc_pipeline.orchestration.assets.flatten import flatten_assets
from kyc_pipeline.orchestration.assets.ingest import ingest_assets, labels
from kyc_pipeline.orchestration.assets.verify import verify_assets
from kyc_pipeline.orchestration.automation import publish_when_new
from kyc_pipeline.orchestration.catalog import add_catalog_entry
from kyc_pipeline.orchestration.jobs import (
    flatten_and_publish,
    labels_and_publish,
    resolve_held_submission,
    verify_and_publish,
)
from kyc_pipeline.orchestration.killed_commands import killed_commands
from kyc_pipeline.orchestration.maintenance import maintenance
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.partitions import daily_partitions
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.retention import retention
from kyc_pipeline.orchestration.schedules import (
    catch_up,
    daily_retention,
    daily_verification,
    weekly_maintenance,
)
from kyc_pipeline.orchestration.sensors import new_labels, new_manifests, run_left_behind
from kyc_pipeline.orchestration.shown_resources import resources_of
from kyc_pipeline.orchestration.unfinished import unfinished_days
from kyc_pipeline.settings import load_settings


def build_defs(
    pipeline: Pipeline | None = None, controls: CallControls | None = None, *, publication: bool = True
) -> dg.Definitions:
    """The project's definitions.

    `pipeline` replaces the resource that is built from the environment; `controls` apply to runs in this
    process. Without `publication`, only the daily assets, which load faster. Raises
    :class:`~kyc_pipeline.errors.UsageError` with one line if a setting is invalid.
    """
    pipeline = pipeline or Pipeline(load_settings())
    settings = pipeline.settings
    partitions = daily_partitions(settings.kyc_start_date)
    assets = [
        ingest_assets(partitions),
        verify_assets(partitions, controls),
        flatten_assets(partitions),
    ]
    jobs, sensors = [verify_and_publish, flatten_and_publish], [new_manifests]
    if publication:
        # Imported here because it parses all SQL.
        from kyc_pipeline.orchestration.assets.analyze import build_warehouse, report

        assets += [labels, build_warehouse, report]
        jobs.append(labels_and_publish)
        sensors.append(new_labels)
    return dg.Definitions(
        assets=[*dg.map_asset_specs(add_catalog_entry(settings.kyc_source_url), assets)],
        asset_checks=[unfinished_days(partitions)],
        jobs=[
            *jobs,
            resolve_held_submission,
            retention,
            maintenance,
        ],
        schedules=[daily_verification, catch_up, daily_retention, weekly_maintenance],
        sensors=[
            *sensors,
            run_left_behind,
            killed_commands,
            publish_when_new,
            alerts_sensor(configured=settings.sends_alerts),
        ],
        resources=resources_of(pipeline),
        # A run has a process of its own anyway, and a step in it starts in 0.1 s instead of 2.5 s.
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The entry point of `dg` and `dagster`."""
    if load_settings().kyc_log_format == "json":
        log_as_json()
    return build_defs()
