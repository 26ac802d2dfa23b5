"""Assets of the group `flatten`: a day's responses as five typed tables."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow.compute as pc

from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import (
    CURATED_TABLES,
    MODEL_CHECKS,
    VERIFICATION_RESPONSES,
    VERIFICATIONS,
    Table,
)
from kyc_pipeline.orchestration.checks import check_specs
from kyc_pipeline.orchestration.checks.flatten import CHECKS, check_partition
from kyc_pipeline.orchestration.partitions import BACKFILL_POLICY, DayResult, work_through
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.orchestration.specs import row_count, table_spec
from kyc_pipeline.orchestration.up_to_date import BuildConfig
from kyc_pipeline.vocabulary import CheckStatus

GROUP = "flatten"


def flatten_assets(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The five curated tables; one step derives them from `verification_responses`."""

    @dg.multi_asset(
        name="flatten",
        specs=[
            table_spec(
                table,
                group=GROUP,
                partitions=partitions,
                # The step also reads `submissions`, which is upstream of the responses anyway. A second
                # dependency would close a diamond, and Dagster 1.13 rejects backfills over a diamond at
                # random, because it compares the partitions of the five tables in set order.
                deps=[VERIFICATION_RESPONSES.name],
            )
            for table in CURATED_TABLES
        ],
        check_specs=check_specs(CHECKS),
        backfill_policy=BACKFILL_POLICY,
    )
    @safe_errors
    def flatten(
        context: dg.AssetExecutionContext, config: BuildConfig, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        lake, pseudonymizer = pipeline.lake, pipeline.pseudonymizer

        def work(day: str) -> DayResult:
            erasures = None
            # Flatten again if somebody was erased meanwhile: the tables may still contain them.
            while erasures != (erasures := pipeline.erasure_state()):
                summary = flatten_partition(
                    lake, day, pseudonymizer, pipeline.settings.kyc_clear_tags, force=config.force
                )
            metadata = {table.name: row_count(lake.row_count(table, day)) for table in CURATED_TABLES}
            for table, name, rate in _rates(lake, day):
                if rate is not None:
                    metadata[table.name][name] = rate
            return DayResult(metadata, check_partition(lake, day, summary), summary.up_to_date)

        yield from work_through(context, work)

    return flatten


def _rates(lake: Lake, day: str) -> Iterator[tuple[Table, str, float | None]]:
    """Rates that Dagster plots over the partitions: (table, name, rate); None without values."""
    verified = lake.read(VERIFICATIONS, day, ["verified"])["verified"]
    yield VERIFICATIONS, "verified_rate", pc.mean(verified).as_py()
    statuses = lake.read(MODEL_CHECKS, day, ["normalized_status"])["normalized_status"].to_pylist()
    passed, failed = statuses.count(CheckStatus.PASS), statuses.count(CheckStatus.FAIL)
    yield MODEL_CHECKS, "pass_rate", passed / (passed + failed) if passed + failed else None
