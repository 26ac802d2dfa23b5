"""The weekly clean-up: old Dagster runs, responses and free space of the ledger, files of killed processes.

Deleting a run deletes its materializations too, and Dagster would no longer know that a day is done. So a run
stays while it holds the latest materialization of an asset or partition.
"""

import os
import shutil
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import dagster as dg
from pydantic import Field

from kyc_pipeline.analyze.publish import remove_old
from kyc_pipeline.lake.atomic import drafts_of, remove_drafts
from kyc_pipeline.lake.tables import ALL_TABLES
from kyc_pipeline.ledger.upkeep import vacuum
from kyc_pipeline.orchestration.offload import offload_responses
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.scratch import scratch_folders
from kyc_pipeline.wording import plural

_PAGE: Final = 500
_ENDED: Final = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


class RunsConfig(dg.Config):
    """Which runs the job keeps."""

    keep_runs_days: int = Field(
        default=90,
        ge=1,
        description="Delete older runs, unless they hold a latest materialization.",
    )


class FilesConfig(dg.Config):
    """Which files the job keeps."""

    keep_files_hours: int = Field(
        default=24, ge=1, description="Remove unfinished files of killed processes if they are older."
    )


@dg.op(description="Deletes old runs, unless they hold a latest materialization.")
@safe_errors
def prune_runs(context: dg.OpExecutionContext, config: RunsConfig) -> None:
    """Logs how many runs it deleted and kept."""
    before = datetime.now(UTC) - timedelta(days=config.keep_runs_days)
    deleted, kept = delete_runs(context.instance, before)
    context.log.info(
        f"deleted {plural(deleted, 'run')} from before {before:%Y-%m-%d}; kept {kept} that made the latest "
        "materialization of an asset"
    )


@dg.op(ins={"after": dg.In(dg.Nothing)}, description="Frees the space of what left the ledger.")
@safe_errors
def vacuum_ledger(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> None:
    """Logs what it did, or why it did nothing."""
    with pipeline.open_ledger() as ledger:
        context.log.info(vacuum(ledger))


@dg.op(ins={"after": dg.In(dg.Nothing)}, description="Removes unfinished files of killed processes.")
@safe_errors
def remove_stale_files(
    context: dg.OpExecutionContext, config: FilesConfig, pipeline: dg.ResourceParam[Pipeline]
) -> None:
    """Logs how many files and folders it removed."""
    older_than = time.time() - config.keep_files_hours * 3600
    removed = remove_stale(pipeline, older_than)
    context.log.info(f"removed {removed} unfinished files and folders")


@dg.job(
    description="Deletes old runs, takes from the ledger what only the lake must keep, removes unfinished "
    "files.",
    tags={"dagster/priority": "-5"},
)
def maintenance() -> None:
    remove_stale_files(after=vacuum_ledger(after=offload_responses(after=prune_runs())))


def delete_runs(instance: dg.DagsterInstance, before: datetime) -> tuple[int, int]:
    """Deletes ended runs created before `before`, with their events and logs. Returns (deleted, kept)."""
    old = set(_ended_runs(instance, before))
    needed = old & set(_runs_with_latest_materializations(instance)) if old else set()
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


def _runs_with_latest_materializations(instance: dg.DagsterInstance) -> Iterator[str]:
    """The runs that hold the latest materialization of an asset or of one of its partitions."""
    for key in instance.all_asset_keys():
        latest = instance.get_latest_materialization_event(key)
        if latest is not None:
            yield latest.run_id
        ids = sorted(
            instance.get_latest_storage_id_by_partition(
                key, dg.DagsterEventType.ASSET_MATERIALIZATION
            ).values()
        )
        for start in range(0, len(ids), _PAGE):
            page = dg.AssetRecordsFilter(asset_key=key, storage_ids=ids[start : start + _PAGE])
            for record in instance.fetch_materializations(page, limit=_PAGE).records:
                yield record.run_id


def _remove_shard(instance: dg.DagsterInstance, run_id: str) -> None:
    """Removes the run's SQLite file of events: Dagster empties it but leaves it in place."""
    shard = Path(instance.root_directory) / "history" / "runs" / f"{run_id}.db"
    for side in ("", "-wal", "-shm"):
        shard.with_name(shard.name + side).unlink(missing_ok=True)


def remove_stale(pipeline: Pipeline, older_than: float) -> int:
    """Removes drafts and scratch folders last written before `older_than` (seconds since the epoch).

    Also removes builds in an object store that were replaced more than a day ago. Returns how many it
    removed, not counting drafts of warehouse and report.
    """
    removed = sum(pipeline.lake.remove_drafts(table, older_than=older_than) for table in ALL_TABLES)
    for target in (pipeline.settings.kyc_warehouse, pipeline.settings.kyc_report):
        if isinstance(target, Path):
            remove_drafts(drafts_of(target), older_than=older_than)
    removed += remove_old(pipeline.settings.kyc_warehouse)
    for folder in scratch_folders():
        if _is_stale(folder, older_than):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def _is_stale(path: Path, older_than: float) -> bool:
    """Whether `path` is an old folder of this user, and no symbolic link."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and found.st_mtime < older_than
