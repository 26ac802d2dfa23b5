"""Asset specs of the lake tables, generated from the data dictionary in `lake/tables.py`."""

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import ALL_TABLES, Table

RESPONSE = dg.AssetKey(["deepxl", "response"])
"""DeepXL's response as a source in column lineage. It is no asset; its columns are field paths."""
INGEST, VERIFY, FLATTEN, ANALYZE = "ingest", "verify", "flatten", "analyze"
"""The groups of assets: one per stage."""
LAKE_TABLES = frozenset(table.name for table in ALL_TABLES)


def table_spec(
    table: Table,
    *,
    group: str,
    partitions: dg.PartitionsDefinition[str] | None = None,
    deps: Iterable[str] = (),
    skippable: bool = False,
) -> dg.AssetSpec:
    """The spec of one lake table, with its description, columns and zone."""
    return dg.AssetSpec(
        table.name,
        description=f"{table.description}\n\nZone `{table.zone}`.",
        group_name=group,
        deps=list(deps),
        kinds={"parquet"},
        tags={"zone": table.zone.value},
        partitions_def=partitions,
        skippable=skippable,
        metadata={
            "dagster/column_schema": _table_schema(table),
            **lineage({column.name: map(_source, column.made_from) for column in table.columns}),
        },
    )


def _table_schema(table: Table) -> dg.TableSchema:
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


def lineage(sources: Mapping[str, Iterable[dg.TableColumnDep]]) -> dict[str, Any]:
    """Column lineage as metadata. Only Dagster+ draws it, so the open-source UI gets a table as well."""
    made_from = {column: list(deps) for column, deps in sources.items()}
    records = [
        dg.TableRecord(
            {
                "column": column,
                "made_from": ", ".join(
                    f"{dep.asset_key.to_user_string()}: {dep.column_name}" for dep in deps
                ),
            }
        )
        for column, deps in made_from.items()
    ]
    return {
        "dagster/column_lineage": dg.TableColumnLineage(made_from),
        "column_sources": dg.MetadataValue.table(records),
    }


def _source(path: str) -> dg.TableColumnDep:
    table, _, column = path.partition(".")
    return dg.TableColumnDep(table, column) if table in LAKE_TABLES else dg.TableColumnDep(RESPONSE, path)


def partition_metadata(lake: Lake, table: Table, day: str, rows: int) -> dict[str, Any]:
    """A partition's row count, in the form that Dagster shows, and its file."""
    path = lake.full_path(lake.path(table, day))
    return {"dagster/partition_row_count": rows, "path": dg.MetadataValue.path(path)}
