"""Assets of the group `flatten`: the answers of a day as five typed tables."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from kyc_pipeline.flatten.partition import FlattenSummary, flatten_partition
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    MODEL_CHECKS,
    VERIFICATION_FILES,
    VERIFICATION_RESPONSES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
    Table,
)
from kyc_pipeline.orchestration.checks import check_specs
from kyc_pipeline.orchestration.checks.flatten import CHECKS, check_partition
from kyc_pipeline.orchestration.failures import fails_plainly
from kyc_pipeline.orchestration.partitions import BACKFILL_POLICY, DayResult, work_through
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.specs import row_count, table_spec
from kyc_pipeline.vocabulary import CheckStatus

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
        check_specs=check_specs(CHECKS),
        backfill_policy=BACKFILL_POLICY,
    )
    @fails_plainly
    def flatten(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        lake, pseudonymizer = pipeline.lake, pipeline.pseudonymizer

        def flattened(day: str) -> FlattenSummary:
            while True:
                erasures = pipeline.erasure_state()
                summary = flatten_partition(lake, day, pseudonymizer, pipeline.settings.kyc_clear_tags)
                # Who was erased while the day was read may be in what was just written.
                if pipeline.erasure_state() == erasures:
                    return summary

        def work(day: str) -> DayResult:
            summary = flattened(day)
            metadata = {table.name: row_count(lake.row_count(table, day)) for table in TABLES}
            metadata[VERIFICATIONS.name] |= _share("verified_rate", _verified(lake, day))
            metadata[MODEL_CHECKS.name] |= _share("pass_rate", _passed(lake, day))
            return DayResult(
                metadata=metadata,
                checks=check_partition(lake, day, summary),
            )

        yield from work_through(context, work)

    return flatten


def _verified(lake: Lake, day: str) -> list[bool]:
    return [bool(value) for value in _column(lake, VERIFICATIONS, day, "verified")]


def _passed(lake: Lake, day: str) -> list[bool]:
    """Of the checks that passed or failed, whether each passed."""
    statuses = _column(lake, MODEL_CHECKS, day, "normalized_status")
    decided = (CheckStatus.PASS, CheckStatus.FAIL)
    return [status == CheckStatus.PASS for status in statuses if status in decided]


def _column(lake: Lake, table: Table, day: str, name: str) -> list[object]:
    return lake.read(table, day, [name])[name].to_pylist()


def _share(name: str, values: list[bool]) -> dict[str, float]:
    """The share of true ones, plotted by Dagster over the partitions; nothing where there are no values."""
    return {name: sum(values) / len(values)} if values else {}
