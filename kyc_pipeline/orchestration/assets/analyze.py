"""Assets of the group `analyze`: the warehouse's tables, the published file and the report.

One step builds all tables in one connection into a new file, checks it, and only then publishes it by an
atomic replace. A failed build or a failed check of severity error leaves the published file as it was.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import duckdb

from kyc_pipeline.analyze.build import BuildSummary, build, open_draft
from kyc_pipeline.analyze.figures import (
    column_types,
    confidence_picture,
    newest_day,
    of_warehouse,
    read_figures,
)
from kyc_pipeline.analyze.lineage import column_sources
from kyc_pipeline.analyze.models import Model, load_models
from kyc_pipeline.analyze.publish import new_draft, publish, remove_draft
from kyc_pipeline.analyze.quality import Severity, check_build
from kyc_pipeline.analyze.report import write_report
from kyc_pipeline.lake.tables import TABLES
from kyc_pipeline.orchestration.checks.analyze import check_result, check_specs
from kyc_pipeline.orchestration.failures import fails_plainly
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.specs import lineage

GROUP = "analyze"
WAREHOUSE = dg.AssetKey("warehouse")
REPORT = dg.AssetKey("report")
_ATTEMPTS = 3
MODELS = load_models()
LAKE_TABLES = frozenset(table.name for table in TABLES)


def asset_key(model: str) -> dg.AssetKey:
    """`pass_rates`; a fact that has a lake table's name is `warehouse/verifications`."""
    return dg.AssetKey(["warehouse", model] if model in LAKE_TABLES else [model])


def _model_spec(model: Model) -> dg.AssetSpec:
    return dg.AssetSpec(
        asset_key(model.name),
        description=model.description,
        group_name=GROUP,
        deps=[*LAKE_TABLES.intersection(model.sources), *(asset_key(name) for name in model.depends_on)],
        kinds={"duckdb"},
        metadata={
            "dagster/column_schema": dg.TableSchema(
                columns=[dg.TableColumn(name, description=meaning) for name, meaning in model.columns]
            ),
            **_lineage(model),
        },
    )


def _metadata(connection: duckdb.DuckDBPyConnection, summary: BuildSummary) -> dict[str, dict[str, Any]]:
    """What Dagster shows of each table, and of the file, at this materialization."""
    figures, types = read_figures(connection), column_types(connection)
    newest, picture = newest_day(connection), confidence_picture(connection)
    shown: dict[str, dict[str, Any]] = {
        model.name: {
            "dagster/row_count": summary.tables[model.name],
            "dagster/column_schema": _schema(model, types[model.name]),
            "dagster/table_name": f"kyc.main.{model.name}",
            **figures.get(model.name, {}),
            # The definition has the table of sources too, which would push the figures off the page here.
            "dagster/column_lineage": _lineage(model)["dagster/column_lineage"],
        }
        for model in MODELS
    }
    if picture:
        shown["confidence_histogram"]["confidences"] = dg.MetadataValue.md(picture)
    shown[WAREHOUSE.to_user_string()] = {
        "dagster/row_count": summary.rows,
        "partitions": len(summary.partitions),
        "newest_day": newest or "none",
        **of_warehouse(figures),
    }
    return shown


def _schema(model: Model, types: Mapping[str, str]) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[
            dg.TableColumn(name, type=types[name], description=meaning) for name, meaning in model.columns
        ]
    )


def _lineage(model: Model) -> dict[str, Any]:
    """Where each column comes from: one step back."""
    return lineage(
        {
            column: [
                dg.TableColumnDep(
                    dg.AssetKey(source.table) if source.in_lake else asset_key(source.table), source.column
                )
                for source in sources
            ]
            for column, sources in column_sources()[model.name].items()
        }
    )


def _warehouse_spec() -> dg.AssetSpec:
    return dg.AssetSpec(
        WAREHOUSE,
        description="The published DuckDB file, replaced atomically: reading it never fails or waits.",
        group_name=GROUP,
        deps=[asset_key(model.name) for model in MODELS],
        kinds={"duckdb"},
    )


@dg.multi_asset(
    name="build_warehouse",
    specs=[*(_model_spec(model) for model in MODELS), _warehouse_spec()],
    check_specs=check_specs(WAREHOUSE),
)
@fails_plainly
def build_warehouse(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    settings = pipeline.settings
    warehouse = settings.kyc_warehouse
    erasures = pipeline.erasure_state()
    with new_draft(warehouse) as draft:
        for _ in range(_ATTEMPTS):
            summary = build(
                pipeline.lake,
                draft,
                run_id=context.run.run_id,
                price_per_call=settings.deepxl_price_per_call,
                memory_limit=settings.kyc_warehouse_memory,
                max_fact_rows=settings.kyc_warehouse_max_fact_rows,
            )
            with open_draft(draft, settings.kyc_warehouse_memory) as connection:
                results = check_build(connection)
                metadata = _metadata(connection, summary)
            errors = [r for r in results if r.severity is Severity.ERROR and not r.passed]
            # A day that was written again meanwhile is new in a view, and not yet in the tables.
            if not errors or summary.stands(pipeline.lake):
                break
            remove_draft(draft)
        yield from (check_result(WAREHOUSE, result) for result in results)
        if errors:
            raise dg.Failure(
                description="not published: "
                + "; ".join(
                    f"{error.name} ({error.unit}: {error.count}): {error.description}" for error in errors
                ),
                allow_retries=False,
            )
        if pipeline.erasure_state() != erasures:
            raise dg.Failure(
                description="not published: somebody was erased while it was built: build it again",
                allow_retries=False,
            )
        publish(draft, warehouse)
    for model in MODELS:
        yield dg.MaterializeResult(asset_key=asset_key(model.name), metadata=metadata[model.name])
    yield dg.MaterializeResult(
        asset_key=WAREHOUSE,
        metadata={**metadata[WAREHOUSE.to_user_string()], "bytes": warehouse.stat().st_size},
    )


@dg.asset(
    key=REPORT,
    group_name=GROUP,
    deps=[WAREHOUSE],
    kinds={"html"},
    description="The report: one self-contained page, made from the published warehouse.",
)
@fails_plainly
def report(pipeline: dg.ResourceParam[Pipeline]) -> dg.MaterializeResult[Any]:
    settings = pipeline.settings
    erasures = None
    # Again, where somebody was erased meanwhile: what was read may show them.
    while erasures != (erasures := pipeline.erasure_state()):
        write_report(settings.kyc_warehouse, settings.kyc_report)
    return dg.MaterializeResult(metadata={"bytes": settings.kyc_report.stat().st_size})
