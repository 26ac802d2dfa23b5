"""The weekly cleaning: old runs of Dagster, free pages of the ledger, files that killed processes left.

A run is forgotten only when nothing is lost with it: deleting a run deletes its materializations too, and
with them that a day is done. So a run stays as long as it holds the newest materialization of anything.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import dagster as dg
from pydantic import Field

from kyc_pipeline.lake.atomic import drafts_of, remove_drafts
from kyc_pipeline.lake.tables import TABLES
from kyc_pipeline.ledger.upkeep import vacuum
from kyc_pipeline.orchestration.failures import fails_plainly
from kyc_pipeline.orchestration.resources import Pipeline

SCRATCH: Final = ("kyc-ingest-*", "kyc-plan-*")
_PAGE: Final = 500
_ENDED: Final = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


class MaintenanceConfig(dg.Config):
    """What is kept."""

    keep_runs_days: int = Field(
        default=90,
        ge=1,
        description="Runs that ended longer ago are forgotten, unless something stands on them.",
    )
    keep_files_hours: int = Field(
        default=24, ge=1, description="Unfinished files of processes that are gone are removed when older."
    )


@dg.op(description="Forgets old runs whose materializations have all been replaced by newer ones.")
@fails_plainly
def prune_runs(context: dg.OpExecutionContext, config: MaintenanceConfig) -> None:
    """Logs how many runs were forgotten and how many stay because something stands on them."""
    before = datetime.now(UTC) - timedelta(days=config.keep_runs_days)
    forgotten, kept = forget_runs(context.instance, before)
    context.log.info(f"{forgotten} runs of before {before:%Y-%m-%d} forgotten, {kept} kept: assets need them")


@dg.op(ins={"after": dg.In(dg.Nothing)}, description="Gives the ledger's free pages back to the disk.")
@fails_plainly
def vacuum_ledger(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> None:
    """Logs what was done, or why not."""
    with pipeline.open_ledger() as ledger:
        context.log.info(vacuum(ledger))


@dg.op(ins={"after": dg.In(dg.Nothing)}, description="Removes unfinished files of processes that are gone.")
@fails_plainly
def remove_stale_files(
    context: dg.OpExecutionContext, config: MaintenanceConfig, pipeline: dg.ResourceParam[Pipeline]
) -> None:
    """Logs how many files and folders were removed."""
    older_than = time.time() - config.keep_files_hours * 3600
    removed = remove_stale(pipeline, older_than)
    context.log.info(f"{removed} unfinished files and folders removed")


@dg.job(
    description="Forgets old runs, gives the ledger's free pages back, removes unfinished files.",
    executor_def=dg.in_process_executor,
    tags={"dagster/priority": "-5"},
)
def maintenance() -> None:
    """One after the other: none of them is in a hurry."""
    remove_stale_files(after=vacuum_ledger(after=prune_runs()))


weekly_maintenance = dg.ScheduleDefinition(
    name="weekly_maintenance",
    job=maintenance,
    cron_schedule="30 5 * * 0",
    execution_timezone="UTC",
    description="Cleans up: old runs, the ledger's free pages, unfinished files.",
)
"""Sundays at 05:30 UTC, after the night's runs."""


def forget_runs(instance: dg.DagsterInstance, before: datetime) -> tuple[int, int]:
    """Deletes ended runs created before `before`, with their events and logs; (deleted, kept)."""
    old = set(_ended_runs(instance, before))
    needed = old & set(_runs_that_assets_stand_on(instance)) if old else set()
    for run_id in old - needed:
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        _remove_shard(instance, run_id)
    return len(old - needed), len(needed)


def _ended_runs(instance: dg.DagsterInstance, before: datetime) -> Iterator[str]:
    filters = dg.RunsFilter(statuses=_ENDED, created_before=before)
    cursor = None
    while page := instance.get_run_records(filters, limit=_PAGE, cursor=cursor):
        yield from (record.dagster_run.run_id for record in page)
        cursor = page[-1].dagster_run.run_id


def _runs_that_assets_stand_on(instance: dg.DagsterInstance) -> Iterator[str]:
    """The runs that hold the newest materialization of an asset, or of one of its partitions."""
    for key in instance.all_asset_keys():
        newest = instance.get_latest_materialization_event(key)
        if newest is not None:
            yield newest.run_id
        ids = sorted(
            instance.get_latest_storage_id_by_partition(
                key, dg.DagsterEventType.ASSET_MATERIALIZATION
            ).values()
        )
        for start in range(0, len(ids), _PAGE):
            some = dg.AssetRecordsFilter(asset_key=key, storage_ids=ids[start : start + _PAGE])
            for record in instance.fetch_materializations(some, limit=_PAGE).records:
                yield record.run_id


def _remove_shard(instance: dg.DagsterInstance, run_id: str) -> None:
    """SQLite keeps a file for each run's events, which Dagster empties and leaves."""
    shard = Path(instance.root_directory) / "history" / "runs" / f"{run_id}.db"
    for side in ("", "-wal", "-shm"):
        shard.with_name(shard.name + side).unlink(missing_ok=True)


def remove_stale(pipeline: Pipeline, older_than: float) -> int:
    """Removes stale drafts and scratch folders last written before `older_than` (seconds since the epoch).

    Returns how many drafts of the lake and scratch folders; those of warehouse and report are not counted.
    """
    removed = sum(pipeline.lake.remove_drafts(table, older_than=older_than) for table in TABLES)
    for target in (pipeline.settings.kyc_warehouse, pipeline.settings.kyc_report):
        remove_drafts(drafts_of(target), older_than=older_than)
    for pattern in SCRATCH:
        for folder in Path(tempfile.gettempdir()).glob(pattern):
            if _is_ours(folder) and _is_older(folder, older_than):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed


def _is_older(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except FileNotFoundError:
        return False


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.lstat().st_uid == os.getuid() and path.is_dir() and not path.is_symlink()
    return False
