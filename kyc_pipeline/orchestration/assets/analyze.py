"""Assets of the group `analyze`: the warehouse's tables, the published file and the report.

One step builds all tables into a new file, runs the checks on it, and replaces the published file atomically.
If the build or a check of severity ERROR fails, the published file stays unchanged.

If nothing has changed since the last publication, nothing is built. Dagster then gets observations, and the
results of the checks from the published build.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import duckdb

from kyc_pipeline.analyze.build import BuildSummary, build, open_draft, record_checks
from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.figures import (
    column_types,
    confidence_picture,
    newest_day,
    pass_rates_preview,
    read_figures,
    warehouse_figures,
)
from kyc_pipeline.analyze.lineage import column_sources
from kyc_pipeline.analyze.publish import new_draft, open_warehouse, remove_draft, size_of
from kyc_pipeline.analyze.quality import check_build, load_checks, recorded_checks
from kyc_pipeline.analyze.report import remove_old_reports, report_size, report_url, write_report
from kyc_pipeline.analyze.sql_models import Model, load_models
from kyc_pipeline.analyze.turn import Turn
from kyc_pipeline.checks import Severity
from kyc_pipeline.orchestration.checks import check_result, check_specs
from kyc_pipeline.orchestration.checks.analyze import YESTERDAY, check_yesterday
from kyc_pipeline.orchestration.publication import REPORT, UP_TO_DATE, WAREHOUSE, BuildConfig, Publication
from kyc_pipeline.orchestration.resources import Pipeline
from kyc_pipeline.orchestration.safe_errors import safe_errors
from kyc_pipeline.orchestration.shown import shown
from kyc_pipeline.orchestration.specs import ANALYZE, LAKE_TABLES, lineage

_ATTEMPTS = 3


def asset_key(model: str) -> dg.AssetKey:
    """The model's name; with the prefix `warehouse` if a lake table has the same name."""
    return dg.AssetKey(["warehouse", model] if model in LAKE_TABLES else [model])


def _model_spec(model: Model) -> dg.AssetSpec:
    return dg.AssetSpec(
        asset_key(model.name),
        description=model.description,
        group_name=ANALYZE,
        deps=[*LAKE_TABLES.intersection(model.sources), *(asset_key(name) for name in model.depends_on)],
        kinds={"duckdb"},
        skippable=True,
        metadata={
            "dagster/column_schema": _schema(model, {}),
            **_lineage(model),
        },
    )


def _schema(model: Model, types: Mapping[str, str]) -> dg.TableSchema:
    """The model's columns for Dagster; their `types` are known after a build, if the table is published."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(name, type=types.get(name, "string"), description=meaning)
            for name, meaning in model.columns
        ]
    )


def _lineage(model: Model) -> dict[str, Any]:
    """The direct sources of each column; none for a new model until `make dictionary` writes them."""
    if model.name not in column_sources():
        return {}
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


_WAREHOUSE_SPEC = dg.AssetSpec(
    WAREHOUSE,
    description="The published DuckDB file, replaced atomically: reading it never fails or waits.",
    group_name=ANALYZE,
    deps=[asset_key(model.name) for model in load_models()],
    kinds={"duckdb"},
    skippable=True,
)


@dg.multi_asset(
    name="build_warehouse",
    specs=[*(_model_spec(model) for model in load_models()), _WAREHOUSE_SPEC],
    check_specs=check_specs([YESTERDAY, *(check.definition for check in load_checks())]),
)
@safe_errors
def build_warehouse(
    context: dg.AssetExecutionContext, config: BuildConfig, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """Builds all tables in one step and publishes them, unless warehouse and report are up to date."""
    yield check_result(check_yesterday(pipeline.lake))
    publication = Publication(pipeline, context.instance)
    if not (config.force or publication.reasons()):
        yield from _nothing_new(context, pipeline, publication)
        return
    with pipeline.publication_turn(context.run.run_id) as turn:
        # Another run may have published while this one waited for its turn.
        publication = Publication(pipeline, context.instance)
        reasons = ["config: force"] if config.force else publication.reasons()
        if reasons:
            context.log.info(f"building: {'; '.join(reasons)}")
            pipeline.check_lake()
            if not config.force:  # else somebody says that the lake is right
                publication.check_partitions()
            yield from _build_and_publish(context, pipeline, publication, turn)
        else:
            yield from _nothing_new(context, pipeline, publication)


def _nothing_new(
    context: dg.AssetExecutionContext, pipeline: Pipeline, publication: Publication
) -> Iterator[dg.AssetCheckResult]:
    context.log.info(UP_TO_DATE)
    for event in publication.events([*(asset_key(m.name) for m in load_models()), WAREHOUSE, REPORT]):
        context.log_event(event)
    with open_warehouse(pipeline.settings.kyc_warehouse) as connection:
        yield from map(check_result, recorded_checks(connection))


def _build_and_publish(
    context: dg.AssetExecutionContext, pipeline: Pipeline, publication: Publication, turn: Turn
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    settings = pipeline.settings
    warehouse = settings.kyc_warehouse
    sequence = turn.begin(warehouse)
    erasures = pipeline.erasure_state()

    def confirm() -> None:
        if pipeline.erasure_state() != erasures:
            raise dg.Failure(
                description="not published: somebody was erased during the build; build it again",
                allow_retries=False,
            )

    with new_draft(warehouse) as draft:
        for _ in range(_ATTEMPTS):
            summary = build(
                pipeline.lake,
                draft,
                run_id=context.run.run_id,
                sequence=sequence,
                choices=Choices.of(settings, pipeline.subject_secret()),
                previous=warehouse,
                memory_limit=settings.kyc_warehouse_memory,
                max_fact_rows=settings.kyc_warehouse_max_fact_rows,
                inputs=publication.inputs,
            )
            with open_draft(draft, settings.kyc_warehouse_memory) as connection:
                results = check_build(connection)
                metadata = _metadata(connection, summary, settings.deepxl_currency)
            errors = [r for r in results if r.severity is Severity.ERROR and not r.passed]
            # If a day was rewritten during the build, views and tables disagree: build again.
            if not errors or summary.is_current(pipeline.lake):
                break
            remove_draft(draft)
        yield from (check_result(result) for result in results)
        if errors:
            raise dg.Failure(
                description="not published: "
                + "; ".join(f"{error.name}: {error.description}" for error in errors),
                allow_retries=False,
            )
        record_checks(draft, results)
        is_erasure = pipeline.is_erasing()
        turn.publish(draft, warehouse, summary.built_ns, sequence, confirm, is_erasure=is_erasure)
    for model in load_models():
        yield dg.MaterializeResult(asset_key=asset_key(model.name), metadata=metadata[model.name])
    yield dg.MaterializeResult(
        asset_key=WAREHOUSE,
        metadata={
            **metadata[WAREHOUSE.to_user_string()],
            **shown({"bytes": size_of(warehouse)}, settings.deepxl_currency),
            "path": dg.MetadataValue.path(warehouse),
        },
    )


@dg.asset(
    group_name=ANALYZE,
    deps=[WAREHOUSE],
    kinds={"html"},
    output_required=False,
    description="The report: one self-contained HTML page, drawn from the published warehouse.",
)
@safe_errors
def report(
    context: dg.AssetExecutionContext, config: BuildConfig, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.MaterializeResult[Any]]:
    """Draws the report, unless it is up to date. If the warehouse's step is skipped, so is this one."""
    settings = pipeline.settings
    publication = Publication(pipeline, context.instance)
    if not config.force and publication.is_report_current():
        context.log.info(UP_TO_DATE)
        for observation in publication.observations(REPORT):
            context.log_event(observation)
        return
    place = settings.kyc_report
    with pipeline.publication_turn(context.run.run_id):  # or it could be of an older build
        erasures = None
        # Write it again if somebody was erased meanwhile: it may still contain them.
        while erasures != (erasures := pipeline.erasure_state()):
            write_report(settings.kyc_warehouse, place)
        if pipeline.is_erasing():
            remove_old_reports(place)
    size = shown({"bytes": report_size(place)}, settings.deepxl_currency)
    url = dg.MetadataValue.url(report_url(place))
    yield dg.MaterializeResult(metadata={**size, "path": dg.MetadataValue.path(place), "url": url})


def _metadata(
    connection: duckdb.DuckDBPyConnection, summary: BuildSummary, currency: str
) -> dict[str, dict[str, Any]]:
    """The metadata of this materialization: for each table and for the published file."""
    figures, types = read_figures(connection), column_types(connection)
    newest, picture = newest_day(connection), confidence_picture(connection)
    preview = pass_rates_preview(connection)
    metadata: dict[str, dict[str, Any]] = {
        model.name: {
            "dagster/row_count": summary.tables[model.name],
            "dagster/column_schema": _schema(model, types.get(model.name, {})),
            "dagster/table_name": f"kyc.main.{model.name}",
            **shown(figures.get(model.name, {}), currency),
            "newest_day": newest or "none",
            # Without the table of sources, which would push the figures off the page.
            **{name: value for name, value in _lineage(model).items() if name == "dagster/column_lineage"},
        }
        for model in load_models()
    }
    if preview:
        metadata["pass_rates"]["preview"] = dg.MetadataValue.md(preview)
    if picture:
        metadata["confidence_histogram"]["confidences"] = dg.MetadataValue.md(picture)
    metadata[WAREHOUSE.to_user_string()] = {
        "dagster/row_count": summary.rows,
        "partitions": len(summary.partitions),
        "newest_day": newest or "none",
        **shown(warehouse_figures(figures), currency),
    }
    return metadata
