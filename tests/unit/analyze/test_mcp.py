"""`kyc-pipeline mcp`, used by a client over the standard input and output of a real process."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from kyc_pipeline.analyze.publish import open_warehouse
from kyc_pipeline.cli import mcp
from kyc_pipeline.errors import UsageError
from kyc_pipeline.settings import Settings

if TYPE_CHECKING:  # the import takes a second, in each process that collects tests
    from mcp import ClientSession

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def warehouse(tmp_path: Path) -> Path:
    path = tmp_path / "kyc.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute(
            "CREATE TABLE pass_rates AS SELECT DATE '2024-09-08' AS date, 0.9::DOUBLE AS pass_rate;"
            "COMMENT ON TABLE pass_rates IS 'Pass rates of each day.';"
            "COMMENT ON COLUMN pass_rates.pass_rate IS 'Passed of passed and failed.'"
        )
    return path


@asynccontextmanager
async def assistant(folder: Path) -> "AsyncIterator[ClientSession]":
    """A client of the command, which runs in `folder`."""
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "kyc_pipeline.cli", "mcp"],
        cwd=folder,
        env={"KYC_WAREHOUSE": "kyc.duckdb", "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    with (folder / "stderr").open("w") as errors:
        async with stdio_client(command, errlog=errors) as streams, ClientSession(*streams) as session:
            await session.initialize()
            yield session


def replace_build(warehouse: Path) -> None:
    warehouse.unlink()
    with duckdb.connect(warehouse) as connection:
        connection.execute("CREATE TABLE newer AS SELECT 1 AS n")


async def ask(session: "ClientSession", tool: str, **arguments: Any) -> Any:
    """What the tool returns, or the text of its error."""
    result = await session.call_tool(tool, arguments)
    if not result.is_error:
        return result.structured_content
    [content] = result.content
    assert content.type == "text"
    return content.text


async def test_an_assistant_reads_the_warehouse_and_nothing_else(warehouse: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("name\nJane Roe\n")
    async with assistant(tmp_path) as session:
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert set(tools) == {"tables", "columns", "query"}
        assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools.values())
        assert (await ask(session, "tables"))["rows"] == [["pass_rates", "Pass rates of each day."]]
        assert (await ask(session, "columns", table="pass_rates"))["rows"] == [
            ["date", "DATE", None],
            ["pass_rate", "DOUBLE", "Passed of passed and failed."],
        ]
        assert await ask(session, "query", sql="FROM pass_rates") == {
            "columns": ["date", "pass_rate"],
            "rows": [["2024-09-08", 0.9]],
            "is_truncated": False,
        }
        cut = await ask(session, "query", sql="FROM range(1000)")
        assert (len(cut["rows"]), cut["is_truncated"]) == (mcp.MAX_ROWS, True)
        for sql in (
            f"FROM read_csv('{secret}')",
            f"ATTACH '{tmp_path}/ledger.sqlite'",
            f"COPY pass_rates TO '{tmp_path}/out.csv'",
            "SET enable_external_access = true",
            "DELETE FROM pass_rates",
            "SELECT no_such_column FROM pass_rates",
        ):
            error = await ask(session, "query", sql=sql)
            assert isinstance(error, str), sql
            assert "Jane" not in error
            assert "\n" not in error
        assert not (tmp_path / "out.csv").exists()
        replace_build(warehouse)
        assert (await ask(session, "query", sql="FROM newer"))["rows"] == [[1]]


def test_a_query_that_takes_too_long_ends(warehouse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp, "TIMEOUT_SECONDS", 0.05)
    settings = Settings(_env_file=None, kyc_warehouse=warehouse)
    with pytest.raises(UsageError, match=r"(?i)interrupt"):
        mcp.select(
            settings,
            "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range % 7 = b.range % 11",
        )
    with open_warehouse(warehouse) as connection:
        assert connection.execute("SELECT count(*) FROM pass_rates").fetchall() == [(1,)]
