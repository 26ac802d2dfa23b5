"""`kyc-pipeline query`: runs SQL on the published warehouse, read-only."""

import codecs
import contextlib
import csv
import datetime
import io
import itertools
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

import click
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from kyc_pipeline.analyze.lake_views import check_names
from kyc_pipeline.analyze.publish import ONLY_EXACT, has_views, open_warehouse, seal
from kyc_pipeline.background import background_thread
from kyc_pipeline.cli.output import OUTPUT_FILE
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.lake.atomic import replacing
from kyc_pipeline.scratch import scratch_folder
from kyc_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

TABLE_ROWS = 200
"""Maximum rows of `--format table`."""
_BATCH_ROWS = 4096
SHEET_ROWS = 1_048_576
"""Rows of a sheet, with its header."""
_SHEET_TEXT = 32_767
"""Characters of a cell."""
_SHEET_INTEGERS = 10**15
"""Spreadsheets round integers from here on."""
_NOT_IN_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WRITES_FILES = re.compile(r"\b(COPY|EXPORT|ATTACH)\b", re.IGNORECASE)
_MISSING_TABLE = re.compile(r"Table with name (\w+) does not exist")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
# A spreadsheet that separates by semicolon or tab starts a cell there, even inside quotes.
_FORMULA_INSIDE = re.compile(r"([;\t|\r\n][\s\"]*)(?=[=+\-@＝＋－＠])")
Writer = Callable[[pa.RecordBatchReader, IO[bytes]], None]


@click.command()
@click.argument("sql", required=False)
@click.option(
    "--file",
    "-f",
    "script",
    type=click.File(encoding="utf-8"),
    help="Read the SQL from this file, such as one in sql/examples/; - is standard input.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet", "xlsx"]),
    help="Output format; by default, the suffix of --output, or else a table.",
)
@click.option(
    "--output",
    type=OUTPUT_FILE,
    help="Write to this file, in an existing folder, instead of standard output.",
)
@click.option("--bom", is_flag=True, help="Begin csv with a byte order mark: Excel then reads it as UTF-8.")
@click.option("--exact", is_flag=True, help="Also read the restricted file, whose tables hide nothing.")
def query(
    sql: str | None, script: TextIO | None, form: str | None, output: Path | None, bom: bool, exact: bool
) -> None:
    """Run SQL on the published warehouse (KYC_WAREHOUSE), read-only.

    `"SHOW TABLES"` lists the tables, `"DESCRIBE pass_rates"` the columns of a table. If there are several
    statements, only the last one prints its rows. In csv output, an apostrophe precedes text that a
    spreadsheet would run as a formula; xlsx writes ids, long integers and formulas as text. The SQL reads the
    warehouse and nothing else: no files, settings or extensions.
    """
    text = _text(sql, script)
    if form is None:
        form = output.suffix.removeprefix(".").lower() if output else "table"
    write = WRITERS.get(form)
    if write is None:
        raise UsageError(f"{output} does not say how to write the rows: add --format {'|'.join(WRITERS)}")
    if form in {"parquet", "xlsx"} and output is None and sys.stdout.isatty():
        raise UsageError(f"{form} is binary: write it to a file with --output, or redirect it")
    if bom:
        if form != "csv":
            raise UsageError("--bom is for csv: add --format csv")
        write = _write_csv_with_bom
    with sealed_warehouse(load_settings(), exact=exact) as connection:
        interruptibly(connection, lambda: _show(run_query(connection, text), write, output))


@contextlib.contextmanager
def sealed_warehouse(settings: Settings, *, exact: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """The published warehouse, read-only, for untrusted SQL, which can read nothing else.

    With `exact`, its tables hide nothing. Raises :class:`UsageError` with DuckDB's message in one
    line.
    """
    with scratch_folder() as spill, open_warehouse(settings.kyc_warehouse, exact=exact) as connection:
        seal(connection, settings.kyc_lake, spill)
        try:
            yield connection
        except duckdb.Error as error:
            raise UsageError(_one_line(error)) from error


def run_query(connection: duckdb.DuckDBPyConnection, text: str) -> pa.RecordBatchReader:
    """The rows of the last statement in `text`.

    Raises :class:`UsageError` if there are none, if a statement writes a file, or if it reads one that is not
    the warehouse's.
    """
    _check(connection, text)
    if has_views(connection):
        check_names(connection, text)
    relation = connection.sql(text)
    if relation is None:
        raise UsageError("no rows to show: end with a query, such as SELECT, FROM or DESCRIBE")
    reader: pa.RecordBatchReader = relation.to_arrow_reader(_BATCH_ROWS)
    return reader


def interruptibly(connection: duckdb.DuckDBPyConnection, work: Callable[[], None]) -> None:
    """Runs `work`, which queries `connection`, so that Ctrl-C ends it. Main thread only.

    DuckDB heeds no signal before it has rows, so `work` runs in another thread.
    """
    ended: Future[None] = Future()
    worker = background_thread(work, ended)
    try:
        worker.start()
        ended.result()
    except KeyboardInterrupt:
        while worker.is_alive():
            connection.interrupt()  # it ends only a query that has begun
            worker.join(0.1)
        raise


def _show(reader: pa.RecordBatchReader, write: Writer, output: Path | None) -> None:
    if output is None:
        write(reader, cast("IO[bytes]", _Terminal()) if sys.stdout.isatty() else sys.stdout.buffer)
        sys.stdout.flush()
    else:
        _write_file(reader, write, output)


class _Terminal(io.RawIOBase):
    """Standard output that is a terminal: replaces control characters in the values."""

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        rows = bytes(data)
        sys.stdout.buffer.write(_printable(rows.decode(), kept="\r\n").encode())
        return len(rows)


def _printable(text: str, kept: str = "") -> str:
    return "".join(each if each.isprintable() or each in kept else "?" for each in text)


def _text(sql: str | None, script: TextIO | None) -> str:
    if sql is not None and script is not None:
        raise UsageError("give the SQL or --file, not both")
    if sql is not None:
        try:
            sql.encode()
        except UnicodeEncodeError as error:
            raise UsageError("the SQL cannot be read as UTF-8 text") from error
        return sql
    if script is None:
        raise UsageError("give the SQL, or name its file with --file")
    try:
        return script.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{script.name} cannot be read as UTF-8 text") from error


def _check(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    """Raises :class:`UsageError` for a statement that writes a file, also within EXPLAIN and PREPARE."""
    for statement in connection.extract_statements(text):
        try:
            kind = statement.type
        except ValueError:  # DuckDB's Python package knows fewer types than its parser
            raise UsageError("SQL can only query here, such as SELECT, FROM or DESCRIBE") from None
        if kind != duckdb.StatementType.SELECT and _WRITES_FILES.search(statement.query):
            raise UsageError("SQL cannot write files here: end with the query itself, and add --output FILE")


def _one_line(error: Exception) -> str:
    """DuckDB's message with its hint and line number, in one line; or where the missing table is."""
    missing = _MISSING_TABLE.search(str(error))
    if missing and (table := missing[1].lower()) in ONLY_EXACT:
        return f"only the restricted file has the table {table}: `kyc-pipeline query --exact` reads it"
    message, _, position = str(error).partition("\n\nLINE ")
    line = f" (line {position.partition(':')[0]})" if position else ""
    return " ".join(message.split("\n")) + line


def _write_file(reader: pa.RecordBatchReader, write: Writer, output: Path) -> None:
    """Writes the complete file or, if the query fails midway, nothing."""
    try:
        with replacing(output) as sink:
            write(reader, sink)
    except OSError as error:
        raise KycError(f"cannot write {output}: {error.strerror}") from error


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The batches, as DuckDB computes them: a query may fail on any row."""
    try:
        yield from reader
    except (pa.ArrowException, OSError) as error:
        raise UsageError(_one_line(error)) from error


def each_row(reader: pa.RecordBatchReader) -> Iterator[list[Any]]:
    """The rows, one by one."""
    for batch in _batches(reader):
        columns = [
            _values(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
        ]
        yield from (list(row) for row in zip(*columns, strict=True))


def _values(name: str, column: "pa.Array[Any]") -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        raise UsageError(
            f"column {_printable(name)} has a value that cannot be shown, such as an infinite date: "
            "cast it to VARCHAR"
        ) from None
    return values


def _write_table(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    names = [_printable(name) for name in reader.schema.names]
    numeric = [_is_numeric(field.type) for field in reader.schema]
    rows: list[list[str]] = []
    more = False
    for row in each_row(reader):
        if len(rows) == TABLE_ROWS:
            more = True
            break
        rows.append([_table_cell(value) for value in row])
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for row in (names, ["-" * width for width in widths], *rows):
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        sink.write(("  ".join(cells).rstrip() + "\n").encode())
    if not rows:
        click.echo("no rows", err=True)
    if more:
        click.echo(f"only the first {TABLE_ROWS} rows are shown: --format csv prints all", err=True)


def _write_csv(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    text = io.TextIOWrapper(sink, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(map(_csv_cell, reader.schema.names))  # PIVOT makes names of values
    for row in each_row(reader):
        writer.writerow([_csv_cell(value) for value in row])
    text.detach()


def _write_csv_with_bom(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    sink.write(codecs.BOM_UTF8)
    _write_csv(reader, sink)


def _write_xlsx(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    """One sheet. Raises :class:`UsageError` for more rows than a sheet has."""
    # Not at load: it takes a fifth of a second.
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    names = reader.schema.names
    are_ids = [name.endswith("_id") for name in names]
    book = Workbook(write_only=True)
    sheet = book.create_sheet("query")
    sheet.freeze_panes = "A2"
    try:
        for number, row in enumerate(itertools.chain([names], each_row(reader))):
            if number == SHEET_ROWS:
                raise UsageError(f"a sheet has {SHEET_ROWS:,} rows: add LIMIT, or use --format csv")
            cells = []
            for value, is_id in zip(row, are_ids, strict=True):
                content = _xlsx_value(value, is_id)
                cell = WriteOnlyCell(sheet, content)
                if isinstance(content, str):
                    cell.data_type = "s"  # not "f", a formula
                    cell.number_format = "@"
                cells.append(cell)
            sheet.append(cells)
    finally:
        sheet.close()
    # Not to the sink: if that is a pipe whose reader has gone, zipfile prints an error when it is collected.
    with tempfile.TemporaryFile() as file:
        book.save(file)
        file.seek(0)
        shutil.copyfileobj(file, sink)


def _write_json(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    names = reader.schema.names
    sink.write(b"[")
    separator = b"\n"
    for row in each_row(reader):
        entry = {name: json_value(value) for name, value in zip(names, row, strict=True)}
        sink.write(separator + json.dumps(entry, ensure_ascii=False).encode())
        separator = b",\n"
    sink.write(b"\n]\n")


def _write_parquet(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    try:
        with pq.ParquetWriter(sink, reader.schema, compression="zstd") as writer:
            for batch in _batches(reader):
                writer.write_batch(batch)
    except pa.ArrowNotImplementedError as error:
        raise UsageError(f"{_one_line(error)}: cast the column, for example to VARCHAR") from error


WRITERS: dict[str, Writer] = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
    "parquet": _write_parquet,
    "xlsx": _write_xlsx,
}


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _table_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return _printable(str(value))


def _csv_cell(value: object) -> object:
    if isinstance(value, list | dict):
        value = json.dumps(json_value(value), ensure_ascii=False)
    if isinstance(value, str):
        value = _FORMULA_INSIDE.sub(r"\1'", value)
        return f"'{value}" if value.startswith(_FORMULA_STARTS) else value
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    return value


def _xlsx_value(value: object, is_id: bool) -> object:
    """The value in a form that Excel keeps exactly: its numbers have 15 digits, its times no zone."""
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.UTC).replace(tzinfo=None)
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        return None
    if isinstance(value, list | dict):
        value = json.dumps(json_value(value), ensure_ascii=False)
    if isinstance(value, int) and not isinstance(value, bool) and (is_id or abs(value) >= _SHEET_INTEGERS):
        value = str(value)
    if value is None or isinstance(value, bool | int | float | Decimal | datetime.date | datetime.time):
        return value
    return _NOT_IN_XML.sub("?", str(value))[:_SHEET_TEXT]


def json_value(value: object) -> object:
    """The value as JSON can represent it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        if value and all(isinstance(entry, tuple) for entry in value):  # Arrow's form of a MAP
            return {str(name): json_value(entry) for name, entry in value}
        return [json_value(entry) for entry in value]
    if isinstance(value, dict):
        return {str(name): json_value(entry) for name, entry in value.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, datetime.date | datetime.datetime | datetime.time):
        return value.isoformat()
    return str(value)
