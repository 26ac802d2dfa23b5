"""Runs partitions through Dagster in this process. The instance records the runs, so the UI shows them."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from kyc_pipeline.definitions import build_defs
from kyc_pipeline.errors import UsageError
from kyc_pipeline.orchestration.catch_up import days_left_behind
from kyc_pipeline.orchestration.jobs import VERIFY_AND_PUBLISH, range_tags
from kyc_pipeline.orchestration.paid_calls import CallControls
from kyc_pipeline.orchestration.partitions import BACKFILL_DAYS_PER_RUN
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.sensors import INGEST_STEP
from kyc_pipeline.orchestration.up_to_date import REPORT, UP_TO_DATE, WAREHOUSE, Publication
from kyc_pipeline.verify.budget import CallBudget

DEFAULT_HOME = Path("dagster_home")
INSTANCE = """# The Dagster settings of this folder; the project's dagster_home/dagster.yaml explains them.
telemetry:
  enabled: false
run_monitoring:
  enabled: true
"""


def make_home(folder: Path) -> None:
    """Makes `folder` a Dagster home; keeps an existing `dagster.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), (folder / "dagster.yaml").open("x", encoding="utf-8") as file:
        file.write(INSTANCE)


def open_instance() -> dg.DagsterInstance:
    """The instance at `DAGSTER_HOME`; by default at `./dagster_home`, which is created on first use."""
    if home := os.environ.get("DAGSTER_HOME"):
        if not Path(home).is_dir():
            raise UsageError("DAGSTER_HOME is not a folder: create it, or unset it to use dagster_home/")
    else:
        make_home(DEFAULT_HOME)
    os.environ["DAGSTER_HOME"] = str(Path(home or DEFAULT_HOME).resolve())
    return dg.DagsterInstance.get()


def run_partitions(
    pipeline: Pipeline,
    days: Sequence[str],
    instance: dg.DagsterInstance,
    controls: CallControls | None = None,
    *,
    force: bool = False,
    verbose: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Ingests, verifies and flattens `days` in runs of a few days each, then publishes once.

    Returns one line per failed step. A failed day does not stop the others. After an error that would fail
    every call, and when the budget is used up, the remaining days record their outcomes without a call. A
    stop request skips the remaining runs. The warehouse is published in any case, from what the lake has,
    unless it is up to date; `announce` is told so. `force` flattens and publishes even what is up to date.
    """
    controls = controls or CallControls()
    controls.budget = CallBudget(pipeline.settings.deepxl_max_calls_per_run)
    failures: list[str] = []

    def run(job: dg.JobDefinition, tags: dict[str, str], *steps: str) -> str | None:
        """Runs `job`; `force` applies to `steps`. Returns the run's id if ingest failed."""
        result = job.execute_in_process(
            instance=instance,
            tags={**tags, "kyc/trigger": "command line"},
            run_config={
                "loggers": {"console": {"config": {"log_level": "INFO" if verbose else "CRITICAL"}}},
                "ops": {step: {"config": {"force": force}} for step in steps},
            },
            raise_on_error=False,
        )
        failed = result.filter_events(lambda event: event.is_step_failure)
        failures.extend(failure_line(event) for event in failed)
        return result.run_id if INGEST_STEP in {event.step_key for event in failed} else None

    if days:
        daily = build_defs(pipeline, controls, publication=False).resolve_job_def(VERIFY_AND_PUBLISH)
    for start in range(0, len(days), BACKFILL_DAYS_PER_RUN):
        batch = days[start : start + BACKFILL_DAYS_PER_RUN]
        if failed_run := run(daily, range_tags(batch[0], batch[-1]), "flatten"):
            for first, last in days_left_behind(pipeline, instance, failed_run):
                if not controls.stop.draining:
                    run(daily, range_tags(first, last), "flatten")
        if controls.stop.draining:
            break
    publication = Publication(pipeline, instance)
    if not force and not publication.reasons() and publication.was_recorded_today():
        # Without a run: to plan and record one would take longer than to see that it has nothing to do.
        for observation in publication.observations(WAREHOUSE, REPORT):
            instance.report_runless_asset_event(observation)
        announce(f"warehouse and report are {UP_TO_DATE}")
    else:
        run(publication_job(pipeline), {}, "build_warehouse", "report")
    return failures


def publication_job(pipeline: Pipeline) -> dg.JobDefinition:
    """The part of the job that publishes."""
    definitions = build_defs(pipeline)
    published = [spec.key for spec in definitions.resolve_all_asset_specs() if spec.partitions_def is None]
    return definitions.resolve_job_def(VERIFY_AND_PUBLISH).get_subset(asset_selection=set(published))


def failure_line(event: dg.DagsterEvent) -> str:
    """The failure in one line: the description of our own `dg.Failure`, or the class of any other error.

    The message of another error may contain personal data.
    """
    data: Any = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    error = data.error
    while error and error.cause:
        error = error.cause
    return f"{event.step_key}: {error.cls_name if error else 'failed'} (--verbose shows more)"
