"""Runs partitions in this process, through Dagster: for the command line and the demo.

Runs are recorded in the instance, so the UI shows them like any other.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from kyc_pipeline.definitions import build_defs
from kyc_pipeline.errors import UsageError
from kyc_pipeline.orchestration.catch_up import ingested_by, left_behind
from kyc_pipeline.orchestration.jobs import VERIFY_AND_PUBLISH, range_tags
from kyc_pipeline.orchestration.partitions import BACKFILL_DAYS_PER_RUN
from kyc_pipeline.orchestration.resources import Pipeline, RunControls
from kyc_pipeline.orchestration.sensors import INGEST_STEP

DAILY_GROUPS = ("ingest", "verify", "flatten")
DEFAULT_HOME = Path("dagster_home")
INSTANCE = """# Dagster's settings for this folder; the project's dagster_home/dagster.yaml explains them.
telemetry:
  enabled: false
run_monitoring:
  enabled: true
"""


@dataclass
class LocalRun:
    """What became of the runs: one line for each step that failed."""

    failures: list[str] = field(default_factory=list)
    run_ids: list[str] = field(default_factory=list)


def make_home(folder: Path) -> None:
    """Makes `folder` a Dagster home, unless it is one; an existing `dagster.yaml` stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), (folder / "dagster.yaml").open("x", encoding="utf-8") as file:
        file.write(INSTANCE)


def open_instance() -> dg.DagsterInstance:
    """The instance at `DAGSTER_HOME`; without it, at `dagster_home/` here, which is made on first use."""
    if home := os.environ.get("DAGSTER_HOME"):
        if not Path(home).is_dir():
            raise UsageError("DAGSTER_HOME is not a folder: create it, or unset it to use dagster_home/")
    else:
        make_home(DEFAULT_HOME)
    os.environ["DAGSTER_HOME"] = str(Path(home or DEFAULT_HOME).resolve())
    return dg.DagsterInstance.get()


def run_partitions(
    pipeline: Pipeline,
    controls: RunControls,
    days: Sequence[str],
    instance: dg.DagsterInstance,
    *,
    log_level: str = "CRITICAL",
) -> LocalRun:
    """Ingests, verifies and flattens `days` in runs of a few days each, then publishes once.

    A day that fails does not stop the others; after a fault that every call would meet, or at the end of
    the budget, the others are accounted for without a call. A cancel ends the runs. The warehouse is
    published from what the lake holds, also where some days failed.
    """
    definitions = build_defs(pipeline, controls)
    job = definitions.resolve_job_def(VERIFY_AND_PUBLISH)
    daily: list[dg.AssetKey] = []
    published: list[dg.AssetKey] = []
    for spec in definitions.resolve_all_asset_specs():
        (daily if spec.group_name in DAILY_GROUPS else published).append(spec.key)
    report = LocalRun()

    def run(keys: list[dg.AssetKey], tags: dict[str, str]) -> list[str]:
        """Runs `keys`; gives the days that were ingested, if others' ingest failed."""
        result = job.execute_in_process(
            instance=instance,
            asset_selection=keys,
            tags={**tags, "kyc/trigger": "command line"},
            run_config={"loggers": {"console": {"config": {"log_level": log_level}}}},
            raise_on_error=False,
        )
        report.run_ids.append(result.run_id)
        failed = result.filter_events(_is_step_failure)
        report.failures += [failure_line(event) for event in failed]
        if INGEST_STEP not in {event.step_key for event in failed}:
            return []
        return ingested_by(instance, result.run_id)

    for start in range(0, len(days), BACKFILL_DAYS_PER_RUN):
        batch = days[start : start + BACKFILL_DAYS_PER_RUN]
        ingested = run(daily, range_tags(batch[0], batch[-1]))
        for first, last in left_behind(pipeline.lake, ingested, pipeline.settings.kyc_landing):
            if not controls.stop.draining:
                run(daily, range_tags(first, last))
        if controls.stop.draining:
            break
    run(published, {})
    return report


def _is_step_failure(event: dg.DagsterEvent) -> bool:
    return event.is_step_failure


def failure_line(event: dg.DagsterEvent) -> str:
    """The step's failure in one line: our own description, else the class of the error.

    The text of a foreign error may hold what no console should show; `--verbose` shows Dagster's own log.
    """
    data: Any = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    error = data.error
    while error and error.cause:
        error = error.cause
    return f"{event.step_key}: {error.cls_name if error else 'failed'} (--verbose shows more)"
