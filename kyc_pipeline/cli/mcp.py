"""`kyc-pipeline mcp`: lets an assistant read the published warehouse (Model Context Protocol)."""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click
import duckdb

from kyc_pipeline import __version__
from kyc_pipeline.analyze.choices import literal
from kyc_pipeline.cli.query import each_row, json_value, run_query, sealed_warehouse
from kyc_pipeline.errors import KycError, missing_extra
from kyc_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

MAX_ROWS: Final = 500
"""Of one result."""
TIMEOUT_SECONDS: Final = 30.0
"""For one query, so that a careless join does not occupy the machine."""
INSTRUCTIONS: Final = (
    "Analytics of identity verifications, without personal data. Call `tables` first, then `columns`: every "
    "table and column has a description that says how its figures are defined. Use the rates and intervals "
    "that the tables have, and say which days are not complete (`is_complete`). `query` takes DuckDB's SQL."
)
_TABLES: Final = """
SELECT name, comment
FROM (
    SELECT table_name AS name, comment, internal, database_name FROM duckdb_tables()
    UNION ALL
    SELECT view_name, comment, internal, database_name FROM duckdb_views()
)
WHERE NOT internal AND database_name = current_database()
ORDER BY name
"""
_COLUMNS: Final = """
SELECT column_name, data_type, comment
FROM duckdb_columns()
WHERE NOT internal AND database_name = current_database() AND table_name = {}
ORDER BY column_index
"""


@click.command(
    help=f"""Let an assistant query the published warehouse, over standard input and output.

    Like `kyc-pipeline query`, it reads the warehouse and nothing else. Each query reads the build that is
    published at that time, is stopped after {TIMEOUT_SECONDS:.0f} seconds and returns at most {MAX_ROWS}
    rows.
    """
)
def mcp() -> None:
    """Runs until standard input ends."""
    try:
        server = make_server(load_settings())
    except ModuleNotFoundError:
        raise missing_extra("kyc-pipeline mcp", "mcp") from None
    server.run()


def make_server(settings: Settings) -> "MCPServer[Any]":
    """The server with its tools. Raises `ModuleNotFoundError` without the extra `mcp`."""
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations

    def answer(sql: str) -> dict[str, Any]:
        try:
            return select(settings, sql)
        except KycError as error:
            raise ToolError(str(error)) from None

    def tables() -> dict[str, Any]:
        """List the tables of the warehouse and what they mean."""
        return answer(_TABLES)

    def columns(table: str) -> dict[str, Any]:
        """List the columns of one table, with their types and what they mean."""
        return answer(_COLUMNS.format(literal(table)))

    def query(sql: str) -> dict[str, Any]:
        """Run read-only SQL. `is_truncated` is true if there are more rows than those returned."""
        return answer(sql)

    server = MCPServer("kyc-pipeline", version=__version__, instructions=INSTRUCTIONS)
    for tool in (tables, columns, query):
        server.add_tool(tool, annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    return server


def select(settings: Settings, sql: str) -> dict[str, Any]:
    """The first rows of a query, as JSON.

    Raises :class:`KycError` if the SQL is wrong or takes too long, or if there is no warehouse.
    """
    with sealed_warehouse(settings) as connection, _time_limit(connection):
        reader = run_query(connection, sql)
        rows = [
            [json_value(value) for value in row] for row in itertools.islice(each_row(reader), MAX_ROWS + 1)
        ]
        return {
            "columns": reader.schema.names,
            "rows": rows[:MAX_ROWS],
            "is_truncated": len(rows) > MAX_ROWS,
        }


@contextlib.contextmanager
def _time_limit(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    timer = threading.Timer(TIMEOUT_SECONDS, connection.interrupt)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
