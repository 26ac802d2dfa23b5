"""Assets of the group `flatten`: a day's responses as five typed tables."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, Lake
from kyc_pipeline.lake.tables import (
    CURATED_TABLES,
    MODEL_CHECKS,
    VERIFICATION_RESPONSES,
    VERIFICATIONS,
    Table,
)
from kyc_pipeline.orchestration.checks import check_specs
from kyc_pipeline.orchestration.checks.flatten import CHECKS, check_partition
from kyc_pipeline.orchestration.partitions import BACKFILL_POLICY, DayResult, StepEvent, work_through
from kyc_pipeline.orchestration.publication import BuildConfig
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.orchestration.shown import shown
from kyc_pipeline.orchestration.specs import FLATTEN, partition_metadata, table_spec
from kyc_pipeline.vocabulary import CheckStatus


def flatten_assets(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The five curated tables; one step derives them from `verification_responses`."""

    @dg.multi_asset(
        name="flatten",
        specs=[
            table_spec(
                table,
                group=FLATTEN,
                partitions=partitions,
                # The step also reads `submissions`, which is upstream of the responses anyway. A second
                # dependency would close a diamond, and Dagster 1.13 rejects backfills over a diamond at
                # random, because it compares the partitions of the five tables in set order.
                deps=[VERIFICATION_RESPONSES.name],
            )
            for table in CURATED_TABLES
        ],
        check_specs=check_specs(CHECKS, partitions),
        backfill_policy=BACKFILL_POLICY,
        can_subset=True,  # the step writes all tables, and reports all
    )
    @safe_errors
    def flatten(
        context: dg.AssetExecutionContext, config: BuildConfig, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[StepEvent]:
        lake, pseudonymizer = pipeline.lake, pipeline.pseudonymizer

        def work(day: str) -> DayResult:
            erasures = None
            # Flatten again if somebody was erased meanwhile: the tables may still contain them.
            while erasures != (erasures := pipeline.erasure_state()):
                summary = flatten_partition(
                    lake, day, pseudonymizer, pipeline.settings.kyc_clear_tags, force=config.force
                )
            metadata = {
                table.name: partition_metadata(lake, table, day, lake.row_count(table, day))
                for table in CURATED_TABLES
            }
            for table, name, rate in _rates(lake, day):
                metadata[table.name][name] = rate
            currency = pipeline.settings.deepxl_currency
            metadata = {table: shown(figures, currency) for table, figures in metadata.items()}
            return DayResult(metadata, check_partition(lake, day, summary), summary.up_to_date)

        yield from work_through(context, work)

    return flatten


def _rates(lake: Lake, day: str) -> Iterator[tuple[Table, str, float | None]]:
    """Rates that Dagster plots over the partitions: (table, name, rate); None without values."""
    verified = lake.read(VERIFICATIONS, day, ["verified"])["verified"]
    yield VERIFICATIONS, "verified_rate", pc.mean(verified).as_py()
    kind = ["type", "normalized_status"]
    by_type: dict[str | None, Counter[str]] = defaultdict(Counter)
    for rows in lake.batches(MODEL_CHECKS, day, kind, ROW_GROUP_ROWS):
        for row in pa.table(rows).group_by(kind).aggregate([([], "count_all")]).to_pylist():
            by_type[row["type"]][str(row["normalized_status"])] += row["count_all"]
    yield MODEL_CHECKS, "pass_rate", _pass_rate(sum(by_type.values(), Counter()))
    for check_type in sorted(filter(None, by_type)):
        yield MODEL_CHECKS, f"{check_type} pass_rate", _pass_rate(by_type[check_type])


def _pass_rate(statuses: Counter[str]) -> float | None:
    decided = statuses[CheckStatus.PASS] + statuses[CheckStatus.FAIL]
    return statuses[CheckStatus.PASS] / decided if decided else None
