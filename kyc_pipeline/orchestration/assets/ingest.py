"""Assets of the group `ingest`: the accepted and rejected rows of a day's manifests."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.lock import ingest_lock
from kyc_pipeline.ingest.manifests import ingest_partition, is_ingested
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.orchestration.checks import check_specs
from kyc_pipeline.orchestration.checks.ingest import CHECKS, check_partition
from kyc_pipeline.orchestration.partitions import BACKFILL_POLICY, DayResult, work_through
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.orchestration.specs import row_count, table_spec

GROUP = "ingest"


def ingest_assets(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """`submissions` and `rejected_submissions`; one step reads both from the landing zone."""

    @dg.multi_asset(
        name="ingest",
        specs=[
            table_spec(table, group=GROUP, partitions=partitions)
            for table in (SUBMISSIONS, REJECTED_SUBMISSIONS)
        ],
        check_specs=check_specs(CHECKS),
        backfill_policy=BACKFILL_POLICY,
    )
    @safe_errors
    def ingest(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        lake = pipeline.lake

        def work(day: str) -> DayResult:
            with pipeline.day_lease(day, context.run.run_id) as check_lease, pipeline.open_ledger() as ledger:
                erased = pipeline.erased_subjects(ledger)

                def confirm() -> None:
                    check_lease()
                    if pipeline.erased_subjects(ledger) != erased:
                        raise KycError("somebody was erased while the manifests were read: run the day again")

                summary = ingest_partition(
                    landing=pipeline.settings.kyc_landing,
                    lake=lake,
                    date=day,
                    erased=erased,
                    lock=ingest_lock(ledger, context.run.run_id),
                    confirm=confirm,
                )
            rejected = sum(summary.rejected.values())
            context.log.info(
                f"{day}: {summary.received} rows in {summary.manifests} manifests, "
                f"{summary.accepted} accepted, {rejected} rejected"
                if summary.manifests
                else f"{day}: no manifests"
            )
            return DayResult(
                metadata={
                    SUBMISSIONS.name: {
                        **row_count(summary.accepted),
                        "received": summary.received,
                        "manifests": summary.manifests,
                        "kept": summary.kept,
                        "redelivered_manifests": len(summary.redelivered),
                        "ignored_files": len(summary.ignored_files),
                        "ignored_columns": dict(summary.ignored_columns),
                    },
                    REJECTED_SUBMISSIONS.name: {
                        **row_count(rejected),
                        "reasons": {reason.value: count for reason, count in summary.rejected.items()},
                    },
                },
                checks=check_partition(summary),
            )

        # A day may have given up an id that an earlier day of this run wants.
        landing = pipeline.settings.kyc_landing
        yield from work_through(context, work, lambda day: not is_ingested(landing, lake, day))

    return ingest
