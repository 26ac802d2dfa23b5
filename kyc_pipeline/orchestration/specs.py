"""Asset specs from the data dictionary: what the UI says of a table is what `lake/tables.py` says."""

from collections.abc import Iterable
from typing import Any

import dagster as dg

from kyc_pipeline.lake.tables import Table


def table_spec(
    table: Table,
    *,
    group: str,
    partitions: dg.PartitionsDefinition[str],
    deps: Iterable[str] = (),
    skippable: bool = False,
) -> dg.AssetSpec:
    """The spec of one lake table: description, columns and where it lies."""
    return dg.AssetSpec(
        table.name,
        description=f"{table.description}\n\nZone `{table.zone}`; columns in `docs/data-dictionary.md`.",
        group_name=group,
        deps=list(deps),
        kinds={"parquet"},
        tags={"zone": table.zone.value},
        partitions_def=partitions,
        skippable=skippable,
        metadata={"dagster/column_schema": table_schema(table)},
    )


def table_schema(table: Table) -> dg.TableSchema:
    """Dagster's form of the table's columns."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                type=str(column.type),
                description=column.description,
                constraints=dg.TableColumnConstraints(nullable=column.nullable),
                tags={"personal": ""} if column.personal else None,
            )
            for column in table.columns
        ]
    )


def row_count(rows: int) -> dict[str, Any]:
    """Metadata that Dagster shows as the row count."""
    return {"dagster/partition_row_count": rows}
