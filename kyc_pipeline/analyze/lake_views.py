"""What SQL may name if facts are views over the lake: the views, not the files below them.

DuckDB opens these files with the rights of the SQL, so :func:`publish.seal` leaves them open. They have what
the warehouse hides: small cells and the vendor's texts. So the SQL must be queries, and their parse trees, in
DuckDB's own form, must read tables and views only.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import duckdb

from kyc_pipeline.errors import UsageError

_TABLE_FUNCTIONS: Final = {
    "duckdb_columns",
    "duckdb_databases",
    "duckdb_functions",
    "duckdb_schemas",
    "duckdb_settings",
    "duckdb_tables",
    "duckdb_types",
    "duckdb_views",
    "generate_series",
    "json_each",
    "json_tree",
    "range",
    "unnest",
}
"""Those that read no file, and run no SQL that they get as text."""
_REFUSED_FUNCTIONS: Final = {"json_serialize_plan", "stats"}
"""They show the least and the greatest value of the files, also of hidden rows."""
_NAME: Final = re.compile(r"[\w ]+")
"""Part of a table's name, which WITH may choose. DuckDB reads a file if the parts, joined by dots, are its
path. One of them then has a `/` or `-`, because the lake's files are named `part-0.parquet`."""
_HERE: Final = "facts are views over the lake, so SQL"


def check_names(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raises :class:`UsageError` unless `sql` has only queries, which read tables and views by name."""
    ((text,),) = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchall()
    try:
        tree = json.loads(text)
    except RecursionError:
        raise UsageError(
            "the SQL has too many levels: divide its expressions, for example with WITH"
        ) from None
    if tree["error"]:
        raise UsageError(
            f"{_HERE} can only query: SELECT, FROM, WITH, DESCRIBE, SHOW, SUMMARIZE, or PIVOT with IN"
        )
    for node in _nodes(tree):
        kind = node.get("type")
        if kind == "BASE_TABLE":
            path = node["qualified_name"]["path"]
            if not all(map(_NAME.fullmatch, path)):
                raise UsageError(f"{_HERE} cannot read files: {'.'.join(path)} is no name of a table")
        elif kind == "TABLE_FUNCTION":
            if (name := node["function"]["function_name"].lower()) not in _TABLE_FUNCTIONS:
                raise UsageError(f"{_HERE} cannot call {name}(): read tables and views by their names")
        elif kind == "FUNCTION" and (name := node["function_name"].lower()) in _REFUSED_FUNCTIONS:
            raise UsageError(f"{_HERE} cannot call {name}()")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All objects of a JSON value."""
    left = [tree]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
