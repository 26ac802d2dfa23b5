"""All that Dagster loads, in one place."""

import dagster as dg

from kyc_pipeline.analyze.assets import analyze_assets
from kyc_pipeline.flatten.assets import flatten_assets
from kyc_pipeline.ingest.assets import ingest_assets
from kyc_pipeline.orchestration.jobs import EXECUTOR, verify_and_publish
from kyc_pipeline.orchestration.partitions import daily_partitions
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.schedules import catch_up, daily_verification
from kyc_pipeline.orchestration.sensors import new_manifests, run_left_behind
from kyc_pipeline.settings import load_settings
from kyc_pipeline.verify.assets import resolve_held_submission, verify_assets


def build_defs(pipeline: Pipeline | None = None) -> dg.Definitions:
    """The project's definitions; `pipeline` replaces the resource made from the environment.

    Raises :class:`~kyc_pipeline.errors.UsageError` with one line where a setting is wrong.
    """
    pipeline = pipeline or Pipeline(load_settings())
    partitions = daily_partitions(pipeline.settings.kyc_start_date)
    return dg.Definitions(
        assets=[
            ingest_assets(partitions),
            verify_assets(partitions),
            flatten_assets(partitions),
            *analyze_assets(),
        ],
        jobs=[verify_and_publish, resolve_held_submission],
        schedules=[daily_verification(), catch_up()],
        sensors=[new_manifests(), run_left_behind()],
        resources={"pipeline": pipeline},
        executor=EXECUTOR,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What `dg` and `dagster` load."""
    return build_defs()
