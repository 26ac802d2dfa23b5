"""Assets of the group `flatten`: the answers of a day as five typed tables."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from kyc_pipeline.flatten.checks import CHECKS, check_partition
from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    MODEL_CHECKS,
    VERIFICATION_FILES,
    VERIFICATION_RESPONSES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
)
from kyc_pipeline.orchestration.partitions import BACKFILL_POLICY, DayResult, work_through
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.specs import row_count, table_spec

GROUP = "flatten"
TABLES = (VERIFICATIONS, MODEL_CHECKS, VERIFICATION_TAGS, VERIFICATION_FILES, CONTRACT_DRIFT)


def flatten_assets(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The five curated tables, made together from `verification_responses`."""

    @dg.multi_asset(
        name="flatten",
        specs=[
            table_spec(
                table,
                group=GROUP,
                partitions=partitions,
                # It reads `submissions` too, which stands where the answers stand. Named here as well, it
                # would make a diamond, over which Dagster 1.13 refuses backfills at random: it compares
                # the days of the five tables, and finds equal ones unequal by the order of a set.
                deps=[VERIFICATION_RESPONSES.name],
            )
            for table in TABLES
        ],
        check_specs=[check.spec() for check in CHECKS],
        backfill_policy=BACKFILL_POLICY,
    )
    def flatten(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        lake, pseudonymizer = pipeline.lake, pipeline.pseudonymizer

        def work(day: str) -> DayResult:
            summary = flatten_partition(lake, day, pseudonymizer, pipeline.settings.kyc_clear_tags)
            return DayResult(
                metadata={table.name: row_count(lake.row_count(table, day)) for table in TABLES},
                checks=check_partition(lake, day, summary),
            )

        yield from work_through(context, work)

    return flatten
