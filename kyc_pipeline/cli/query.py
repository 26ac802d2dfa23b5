"""`kyc-pipeline query`: runs SQL on the published warehouse, read-only."""

import csv
import datetime
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, TextIO

import click
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from kyc_pipeline.analyze.publish import open_warehouse, seal
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.lake.atomic import replacing
from kyc_pipeline.settings import load_settings

TABLE_ROWS = 200
"""Maximum rows of `--format table`."""
_BATCH_ROWS = 4096
_WRITES_FILES = re.compile(r"\b(COPY|EXPORT)\b", re.IGNORECASE)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
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
    type=click.Choice(["table", "csv", "json", "parquet"]),
    help="Output format; by default, the suffix of --output, or else a table.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file instead of standard output.",
)
def query(sql: str | None, script: TextIO | None, form: str | None, output: Path | None) -> None:
    """Run SQL on the published warehouse (KYC_WAREHOUSE), read-only.

    `"SHOW TABLES"` lists the tables, `"DESCRIBE pass_rates"` the columns of a table. If there are several
    statements, only the last one prints its rows. In csv output, an apostrophe precedes text that a
    spreadsheet would run as a formula. The SQL reads the warehouse and nothing else: no files, settings or
    extensions.
    """
    text = _text(sql, script)
    if form is None:
        form = output.suffix.removeprefix(".").lower() if output else "table"
    write = WRITERS.get(form)
    if write is None:
        raise UsageError(f"{output} does not say how to write the rows: add --format {'|'.join(WRITERS)}")
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise UsageError("parquet is binary: write it to a file with --output, or redirect it")
    settings = load_settings()
    with open_warehouse(settings.kyc_warehouse) as connection:
        seal(connection, settings.kyc_lake)
        try:
            _check(connection, text)
            relation = connection.sql(text)
            if relation is None:
                raise UsageError("no rows to show: end with a query, such as SELECT, FROM or DESCRIBE")
            reader = relation.to_arrow_reader(_BATCH_ROWS)
            if output is None:
                write(reader, sys.stdout.buffer)
                sys.stdout.flush()
            else:
                _write_file(reader, write, output)
        except duckdb.Error as error:
            raise UsageError(_one_line(error)) from error


def _text(sql: str | None, script: TextIO | None) -> str:
    if sql is not None and script is not None:
        raise UsageError("give the SQL or --file, not both")
    if sql is not None:
        return sql
    if script is None:
        raise UsageError("give the SQL, or a file that contains it with --file")
    try:
        return script.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{script.name} cannot be read as UTF-8 text") from error


def _check(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    """Raises :class:`UsageError` for a statement that writes a file, also within EXPLAIN and PREPARE."""
    for statement in connection.extract_statements(text):
        if statement.type != duckdb.StatementType.SELECT and _WRITES_FILES.search(statement.query):
            raise UsageError("SQL writes no files here: end with the query itself, and add --output FILE")


def _one_line(error: Exception) -> str:
    """DuckDB's message with its hint and line number, in one line."""
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


def _rows(reader: pa.RecordBatchReader) -> Iterator[list[Any]]:
    for batch in _batches(reader):
        columns = [column.to_pylist() for column in batch.columns]
        yield from (list(row) for row in zip(*columns, strict=True))


def _write_table(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    names = reader.schema.names
    numeric = [_is_numeric(field.type) for field in reader.schema]
    rows: list[list[str]] = []
    more = False
    for row in _rows(reader):
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
    writer.writerow(reader.schema.names)
    for row in _rows(reader):
        writer.writerow([_csv_cell(value) for value in row])
    text.detach()


def _write_json(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    names = reader.schema.names
    sink.write(b"[")
    separator = b"\n"
    for row in _rows(reader):
        entry = {name: _json_value(value) for name, value in zip(names, row, strict=True)}
        sink.write(separator + json.dumps(entry, ensure_ascii=False).encode())
        separator = b",\n"
    sink.write(b"\n]\n")


def _write_parquet(reader: pa.RecordBatchReader, sink: IO[bytes]) -> None:
    with pq.ParquetWriter(sink, reader.schema, compression="zstd") as writer:
        for batch in _batches(reader):
            writer.write_batch(batch)


WRITERS: dict[str, Writer] = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
    "parquet": _write_parquet,
}


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _table_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    # A value must not send control characters to the terminal.
    return "".join(character if character.isprintable() else "?" for character in str(value))


def _csv_cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    if isinstance(value, list | dict):
        return json.dumps(_json_value(value), ensure_ascii=False)
    return value


def _json_value(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        return [_json_value(entry) for entry in value]
    if isinstance(value, dict):
        return {str(name): _json_value(entry) for name, entry in value.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, datetime.date | datetime.datetime | datetime.time):
        return value.isoformat()
    return str(value)
