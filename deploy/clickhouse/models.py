"""The warehouse's models for ClickHouse: prints the SQL that creates them as views over the lake.

`python deploy/clickhouse/models.py LAKE MODEL ...`. LAKE is a folder that ClickHouse may read, or the URL of
the lake in an object store, such as `https://bucket.s3.eu-west-1.amazonaws.com/prefix`. The views read the
Parquet files themselves: nothing is loaded, and a day is there as soon as it is flattened.

sqlglot (the extra `clickhouse`) translates the files of `sql/`, so each model is still written once; a test
compares the figures with DuckDB's. Models with functions that only DuckDB has need a translation by hand.
"""

import sys
from collections.abc import Iterator

from kyc_pipeline.analyze.sql_models import LAKE, Model, load_steps, macros_sql
from kyc_pipeline.errors import missing_extra
from kyc_pipeline.lake.storage import PART_FILE
from kyc_pipeline.lake.tables import TABLES

try:
    import sqlglot
    from sqlglot import exp
except ModuleNotFoundError:
    sys.exit(str(missing_extra(__file__, "clickhouse")))

_DAY = "toDate(extract(CAST(_path AS String), 'date=([0-9-]+)/'))"
_FUNCTIONS: dict[type[exp.Expr], str] = {
    exp.ArrayToString: "arrayStringConcat",
    exp.ArraySort: "arraySort",
    exp.LogicalOr: "max",
}
"""What sqlglot does not translate."""


def statements(lake: str, names: tuple[str, ...]) -> Iterator[str]:
    """The databases, the views over the lake, the functions, and the views of the models."""
    steps = _with_dependencies(names)
    yield f"CREATE DATABASE IF NOT EXISTS {LAKE}"
    for table in TABLES:
        files = f"'{lake.rstrip('/')}/{table.zone}/{table.name}/date=*/{PART_FILE}', Parquet"
        source = f"s3({files})" if "://" in lake else f"file({files})"
        # ClickHouse 26.5 loses its own column of the path where a query filters by another one.
        rows = f"SELECT *, {_DAY} AS date FROM {source} SETTINGS use_hive_partitioning = 0"  # noqa: S608
        yield f"CREATE OR REPLACE VIEW {LAKE}.{table.name} AS {rows}"
    counts = (
        f"SELECT date, '{name}' AS table_name, count() AS rows FROM {LAKE}.{name} GROUP BY date"  # noqa: S608
        for name in (table.name for table in TABLES)
    )
    yield f"CREATE OR REPLACE VIEW {LAKE}.partitions AS {' UNION ALL '.join(counts)}"
    for macro in sqlglot.parse(macros_sql(), read="duckdb"):
        if isinstance(macro, exp.Create) and not macro.find(exp.TemporaryProperty):
            signature = macro.this
            parameters = ", ".join(each.name for each in signature.expressions)
            yield (
                f"CREATE OR REPLACE FUNCTION {signature.this.name} AS ({parameters}) -> "
                f"{_translated(macro.expression)}"
            )
    for model in steps:
        yield (
            f"CREATE OR REPLACE VIEW {model.name} AS "
            f"{_translated(sqlglot.parse_one(model.sql, read='duckdb'))} SETTINGS join_use_nulls = 1"
        )


def _with_dependencies(names: tuple[str, ...]) -> list[Model]:
    """The models with these names, and those that they read, in order."""
    wanted = set(names)
    found: list[Model] = []
    for model in reversed(load_steps()):
        if model.name in wanted:
            found.insert(0, model)
            wanted.update(model.depends_on)
    if unknown := wanted - {model.name for model in found}:
        sys.exit(f"no model {', '.join(sorted(unknown))}: see sql/facts and sql/marts")
    return found


def _translated(tree: exp.Expr) -> str:
    for node in reversed(list(tree.find_all(exp.AtTimeZone, *_FUNCTIONS))):  # the inner ones first
        if isinstance(node, exp.AtTimeZone):
            node.replace(node.this)  # the lake's times are in UTC
        else:
            arguments = [each for each in (node.this, node.args.get("expression")) if each]
            node.replace(exp.Anonymous(this=_FUNCTIONS[type(node)], expressions=arguments))
    return tree.sql(dialect="clickhouse")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(";\n".join([*statements(sys.argv[1], tuple(sys.argv[2:])), ""]), end="")
