"""All that Dagster loads, in one place."""

import dagster as dg

from kyc_pipeline.orchestration.alerts import alert_on_failure
from kyc_pipeline.orchestration.assets.analyze import build_warehouse, report
from kyc_pipeline.orchestration.assets.flatten import flatten_assets
from kyc_pipeline.orchestration.assets.ingest import ingest_assets
from kyc_pipeline.orchestration.assets.verify import verify_assets
from kyc_pipeline.orchestration.automation import publish_when_new
from kyc_pipeline.orchestration.catalog import complete
from kyc_pipeline.orchestration.jobs import EXECUTOR, flatten_and_publish, verify_and_publish
from kyc_pipeline.orchestration.maintenance import maintenance, weekly_maintenance
from kyc_pipeline.orchestration.partitions import daily_partitions
from kyc_pipeline.orchestration.resolve_held import resolve_held_submission
from kyc_pipeline.orchestration.resources import Pipeline, RunControls
from kyc_pipeline.orchestration.schedules import catch_up, daily_verification
from kyc_pipeline.orchestration.sensors import new_manifests, run_left_behind
from kyc_pipeline.settings import load_settings


def build_defs(pipeline: Pipeline | None = None, controls: RunControls | None = None) -> dg.Definitions:
    """The project's definitions.

    `pipeline` replaces the resource made from the environment, `controls` those that each run makes.

    Raises :class:`~kyc_pipeline.errors.UsageError` with one line where a setting is wrong.
    """
    pipeline = pipeline or Pipeline(load_settings())
    settings = pipeline.settings
    partitions = daily_partitions(settings.kyc_start_date)
    assets = [
        ingest_assets(partitions),
        verify_assets(partitions),
        flatten_assets(partitions),
        build_warehouse,
        report,
    ]
    return dg.Definitions(
        assets=[*dg.map_asset_specs(complete(settings.kyc_source_url), assets)],
        jobs=[verify_and_publish, flatten_and_publish, resolve_held_submission, maintenance],
        schedules=[daily_verification, catch_up, weekly_maintenance],
        sensors=[
            new_manifests,
            run_left_behind,
            publish_when_new,
            alert_on_failure(configured=settings.kyc_alert_webhook is not None),
        ],
        resources={"pipeline": pipeline, "controls": controls or _own_controls},
        executor=EXECUTOR,
    )


@dg.resource(description="What belongs to one run: budget, stop requests, progress.")
def _own_controls() -> RunControls:
    return RunControls()


@dg.definitions
def defs() -> dg.Definitions:
    """What `dg` and `dagster` load."""
    return build_defs()
