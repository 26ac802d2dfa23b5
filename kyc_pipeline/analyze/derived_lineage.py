"""Derives column lineage from the models' SQL, for `sql/lineage.json`. `make dictionary` writes that file.

The sources of a column are the columns in its expression, traced through every CTE to tables of the lake and
other models. The sources of `count(*)` are the columns that filter the rows (FILTER and WHERE) or, without a
filter, the columns that group them. Columns used only in a join are left out.

Kept apart from `lineage.py`, so that a process that loads the definitions needs no sqlglot, which takes more
than half a second for all models.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Set
from functools import cache, lru_cache
from typing import Final

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, build_scope
from sqlglot.schema import MappingSchema

from kyc_pipeline.analyze.choices import Choices
from kyc_pipeline.analyze.lineage import TABLES_BY_NAME, Source
from kyc_pipeline.analyze.sql_models import LAKE, Model, load_steps
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.tables import ALL_TABLES, SUBMISSIONS

_WAREHOUSE: Final = "warehouse"
_FROM_TAGS: Final = tuple(Choices().submission_columns())
"""Columns that a build adds to `lake.submissions`, made from its `tags`."""


@lru_cache(maxsize=1)
def derived_sources() -> Mapping[str, Mapping[str, tuple[Source, ...]]]:
    """Model → column → its direct sources; a constant, such as a bin's edge, has none.

    Raises :class:`KycError` for a model whose header does not describe the columns of its query.
    """
    lake = {
        table.name: [*(["date"] if table.is_daily else []), *(column.name for column in table.columns)]
        for table in ALL_TABLES
    }
    lake[SUBMISSIONS.name] += _FROM_TAGS
    warehouse = {model.name: [name for name, _ in model.columns] for model in load_steps()}
    schema = MappingSchema(
        {
            name: {table: dict.fromkeys(columns, "text") for table, columns in tables.items()}
            for name, tables in ((LAKE, lake), (_WAREHOUSE, warehouse))
        },
        dialect="duckdb",
    )
    intermediate: dict[Source, tuple[Source, ...]] = {}
    found: dict[str, dict[str, tuple[Source, ...]]] = {}
    for model in load_steps():
        columns = {
            column: tuple(
                sorted({origin for source in sources for origin in intermediate.get(source, (source,))})
            )
            for column, sources in _model_sources(model, schema).items()
        }
        if model.published:
            found[model.name] = columns
        else:
            intermediate |= {Source(False, model.name, column): columns[column] for column in columns}
    return found


def lineage_json() -> str:
    """The content of `sql/lineage.json`: model → column → its sources, as :class:`Source` writes them."""
    found = {
        model: {column: [str(source) for source in sources] for column, sources in columns.items()}
        for model, columns in sorted(derived_sources().items())
    }
    return json.dumps(found, indent=1) + "\n"


def _model_sources(model: Model, schema: MappingSchema) -> dict[str, Set[Source]]:
    try:
        tree = sqlglot.parse_one(model.sql, read="duckdb")
        for window in tree.find_all(exp.Window):
            window.set("partition_by", None)  # it only groups rows, as GROUP BY does
        tree = qualify(
            tree,
            dialect="duckdb",
            schema=schema,
            db=_WAREHOUSE,
            validate_qualify_columns=False,  # DuckDB validates them in a build
        )
    except SqlglotError as error:
        raise KycError(f"{model.path}: {str(error).splitlines()[0]}") from error
    scope = build_scope(tree)
    if scope is None:
        raise KycError(f"{model.path}: not one SELECT")
    _check_header(model, _query(scope).named_selects)
    return {name: _column_sources(scope, name) for name, _ in model.columns}


def _check_header(model: Model, selected: list[str]) -> None:
    described = [name for name, _ in model.columns]
    for name in selected:
        if name not in described:
            raise KycError(f"{model.path}: the header does not describe the column {name}")
    for name in described:
        if name not in selected:
            raise KycError(f"{model.path}: the header describes the column {name}, which the query lacks")
    if described != selected:
        raise KycError(f"{model.path}: the header must describe the columns in the order of the query")


@cache
def _column_sources(scope: Scope, name: str) -> Set[Source]:
    """The sources of the column `name` of a query; cached, because several columns are made from one."""
    position = _query(scope).named_selects.index(name)
    return {
        source
        for select in _selects(scope)
        for source in _expression_sources(select, _query(select).selects[position])
    }


def _selects(scope: Scope) -> Iterator[Scope]:
    """The SELECTs of a UNION, or `scope` itself."""
    if not scope.set_operation_scopes:
        yield scope
    for part in scope.set_operation_scopes:
        yield from _selects(part)


def _query(scope: Scope) -> exp.Query:
    assert isinstance(scope.expression, exp.Query)
    return scope.expression


def _expression_sources(scope: Scope, expression: exp.Expr) -> Iterator[Source]:
    for count in expression.find_all(exp.Count):
        if isinstance(count.this, exp.Star):
            yield from _count_sources(scope, has_filter=isinstance(count.parent, exp.Filter))
    for column in expression.find_all(exp.Column):
        source = scope.sources.get(column.table)
        if isinstance(source, Scope):
            yield from _column_sources(source, column.name)
        elif isinstance(source, exp.Table) and source.name in _tables_of(source.db):
            name = "tags" if source.db == LAKE and column.name in _FROM_TAGS else column.name
            yield Source(source.db == LAKE, source.name, name)


def _tables_of(schema: str) -> Collection[str]:
    """The tables with lineage: not functions such as `range`, `lake.partitions` or the previous build."""
    if schema == LAKE:
        return TABLES_BY_NAME
    return {model.name for model in load_steps()} if schema == _WAREHOUSE else ()


def _count_sources(scope: Scope, *, has_filter: bool) -> Iterator[Source]:
    """The sources of `count(*)`: the columns in WHERE or, if nothing filters the rows, those in GROUP BY."""
    filters = list(_where_sources(scope))
    group = scope.expression.args.get("group")
    if filters or has_filter or not group:
        yield from filters
        return
    for key in group.expressions or [s for s in _query(scope).selects if not s.find(exp.AggFunc)]:
        yield from _expression_sources(scope, key)


def _where_sources(scope: Scope) -> Iterator[Source]:
    if where := scope.expression.args.get("where"):
        yield from _expression_sources(scope, where)
    # An outer join filters no rows.
    outer = {join.alias_or_name for join in scope.expression.args.get("joins") or () if join.side}
    for name, (_, source) in scope.selected_sources.items():
        if isinstance(source, Scope) and name not in outer:
            yield from _where_sources(source)
