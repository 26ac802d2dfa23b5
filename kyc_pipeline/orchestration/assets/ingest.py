"""Assets of the group `ingest`: the accepted and rejected rows of a day's manifests, and of labels."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.labels import LabelsSummary, are_ingested, ingest_labels, stored_summary
from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.ingest.lock import labels_lock
from kyc_pipeline.ingest.manifests import ingest_partition, is_ingested, list_labels
from kyc_pipeline.ingest.owners import Owners
from kyc_pipeline.lake.storage import WHOLE
from kyc_pipeline.lake.tables import LABEL_TABLES, LABELS, REJECTED_LABELS, REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.orchestration.checks import check_result, check_specs
from kyc_pipeline.orchestration.checks.ingest import (
    CHECKS,
    LABEL_CHECKS,
    check_labels,
    check_partition,
)
from kyc_pipeline.orchestration.partitions import BACKFILL_POLICY, DayResult, StepEvent, work_through
from kyc_pipeline.orchestration.publication import UP_TO_DATE, up_to_date
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.orchestration.specs import INGEST, partition_metadata, table_spec
from kyc_pipeline.orchestration.takeover import take_over
from kyc_pipeline.verify.planning import duplicate_documents_line
from kyc_pipeline.wording import run_day_again


def ingest_assets(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """`submissions` and `rejected_submissions`; one step reads both from the landing zone."""

    @dg.multi_asset(
        name="ingest",
        specs=[
            table_spec(table, group=INGEST, partitions=partitions)
            for table in (SUBMISSIONS, REJECTED_SUBMISSIONS)
        ],
        check_specs=check_specs(CHECKS, partitions),
        backfill_policy=BACKFILL_POLICY,
        can_subset=True,  # "dg launch --assets submissions": the step writes both, and reports both
    )
    @safe_errors
    def ingest(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[StepEvent]:
        landing, lake = pipeline.settings.kyc_landing, pipeline.lake
        options = LandingOptions.of(pipeline.settings)

        def work(day: str) -> DayResult:
            with pipeline.open_ledger() as ledger:
                take_over(ledger, day, context.run.run_id, context.run.parent_run_id)
            with pipeline.day_lease(day, context.run.run_id) as held:
                erased = pipeline.erased_subjects(held.ledger)

                def confirm() -> None:
                    held.check()
                    if pipeline.erased_subjects(held.ledger) != erased:
                        raise KycError(
                            f"somebody was erased while the manifests were read: {run_day_again(day)}"
                        )

                summary = ingest_partition(
                    landing=landing,
                    lake=lake,
                    date=day,
                    erased=erased,
                    owners=Owners(lake, held.ledger, held),
                    confirm=confirm,
                    options=options,
                )
            rejected = sum(summary.rejected.values())
            context.log.info(f"{day}: {summary}")
            if summary.duplicate_documents:
                context.log.warning(f"{day}: {duplicate_documents_line(summary.duplicate_documents)}")
            if summary.personal_ids:
                context.log.warning(f"{day}: {summary.personal_ids}")
            return DayResult(
                metadata={
                    SUBMISSIONS.name: {
                        **partition_metadata(lake, SUBMISSIONS, day, summary.accepted),
                        "received": summary.received,
                        "accepted": summary.accepted_rows,
                        "rejected": rejected,
                        "manifests": summary.manifests,
                        "kept": summary.kept,
                        "duplicate_documents": summary.duplicate_documents,
                        "personal_ids": summary.personal_ids.count,
                        "redelivered_manifests": len(summary.redelivered),
                        "ignored_files": len(summary.ignored_files),
                        "ignored_columns": len(summary.ignored_columns),
                    },
                    REJECTED_SUBMISSIONS.name: {
                        **partition_metadata(lake, REJECTED_SUBMISSIONS, day, rejected),
                        "reasons": {reason.value: count for reason, count in summary.rejected.items()},
                    },
                },
                checks=check_partition(summary),
            )

        # A day may have given up an id that an earlier day of this run wants.
        yield from work_through(
            context, work, lambda day: not is_ingested(landing, lake, day, options=options)
        )

    return ingest


@dg.multi_asset(
    name="ingest_labels",
    specs=[table_spec(table, group=INGEST) for table in LABEL_TABLES],
    check_specs=check_specs(LABEL_CHECKS),
)
@safe_errors
def labels(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """Reads the manifests of labels, unless none has changed.

    If the landing zone cannot be read, the labels stay as they are, and a check says so: publication must not
    wait for labels.
    """
    lake, metadata = pipeline.lake, dict[str, dict[str, Any]]()
    try:
        summary = _read_labels(pipeline, context.run.run_id)
    except KycError as error:
        context.log.warning(f"the labels stay as they are: {error}")
        checks = check_labels(None, str(error))
    else:
        if summary is None:
            context.log.info(UP_TO_DATE)
            for table in LABEL_TABLES:
                context.log_event(up_to_date(dg.AssetKey(table.name)))
            summary = stored_summary(lake)
        context.log.info(str(summary))
        checks = check_labels(summary)
        metadata = {
            LABELS.name: {
                "dagster/row_count": lake.row_count(LABELS, WHOLE),
                "path": dg.MetadataValue.path(lake.full_path(lake.path(LABELS, WHOLE))),
                "received": summary.received,
                "accepted": summary.accepted,
                "kept": summary.kept,
                "rejected": summary.rejected_rows,
                "manifests": summary.manifests,
            },
            REJECTED_LABELS.name: {
                "dagster/row_count": lake.row_count(REJECTED_LABELS, WHOLE),
                "reasons": {reason.value: count for reason, count in summary.rejected.items()},
            },
        }
    for table in LABEL_TABLES:
        yield dg.MaterializeResult(asset_key=table.name, metadata=metadata.get(table.name))
    yield from map(check_result, checks)


def _read_labels(pipeline: Pipeline, run_id: str) -> LabelsSummary | None:
    """Reads the manifests of labels into the lake; returns None if none has changed."""
    settings, lake = pipeline.settings, pipeline.lake
    if are_ingested(settings.kyc_landing, lake, settings.kyc_csv_encoding):
        return None
    if not list_labels(settings.kyc_landing).manifests:  # a publication without labels needs no ledger
        return ingest_labels(landing=settings.kyc_landing, lake=lake, csv_encoding=settings.kyc_csv_encoding)
    with pipeline.open_ledger() as ledger:
        erased = pipeline.erased_subjects(ledger)

        def confirm() -> None:
            if pipeline.erased_subjects(ledger) != erased:
                raise KycError("somebody was erased while the labels were read: read them again")

        return ingest_labels(
            landing=settings.kyc_landing,
            lake=lake,
            erased=erased,
            csv_encoding=settings.kyc_csv_encoding,
            lock=labels_lock(ledger, run_id),
            confirm=confirm,
        )
