"""Builds the warehouse: a complete, documented DuckDB file from the lake's Parquet, ready for publication.

One connection reads one consistent set of partitions, runs every model and comments every table and column.
It writes a new file, so a failed build leaves the published file untouched.
"""

import datetime
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import duckdb
import pyarrow as pa

from kyc_pipeline import __version__, quiet_duckdb
from kyc_pipeline.analyze.changes import write_changes
from kyc_pipeline.analyze.choices import Choices, literal
from kyc_pipeline.analyze.label_cells import hide_label_cells
from kyc_pipeline.analyze.publish import (
    EXACT,
    ONLY_EXACT,
    Place,
    open_warehouse,
    remove_draft,
    restricted_path,
    time_of_build,
)
from kyc_pipeline.analyze.small_cells import publish_submissions
from kyc_pipeline.analyze.sql_models import (
    LAKE,
    PREVIOUS,
    Model,
    load_macros,
    load_models,
    load_steps,
    macros_sql,
    sliced_models,
    steps_for,
)
from kyc_pipeline.checks import CheckResult
from kyc_pipeline.errors import KycError, is_disk_fault
from kyc_pipeline.lake.copies import copy_small, listed_filesystem
from kyc_pipeline.lake.storage import DAY_OF_PATH, WHOLE, Lake, Partition, duckdb_path
from kyc_pipeline.lake.tables import ALL_TABLES, CHANGED_KEY, LABELS, SUBMISSIONS, TABLES, Table
from kyc_pipeline.scratch import scratch_folder

STORAGE_VERSION: Final = "v1.5.0"
"""Format of the file: DuckDB 1.5 and newer can open it."""
_READ_ATTEMPTS: Final = 3
_INPUTS: Final = (*TABLES, LABELS)
"""The lake's tables that a build reads."""
_FACTS_OVER_LAKE: Final = ("verifications", "model_checks", "verification_tags", "verification_files")
"""Facts that become views over the lake when they exceed `max_fact_rows`; all are curated."""
_HIDDEN_IN: Final = "submissions"
"""The model whose rows hide small cells; all tables by company or dimension are counted from it."""
_LABELS_HIDDEN_IN: Final = "labelled_slices"
"""The model whose rows hide small cells of labelled people."""
_CHANGES: Final = "found_changes"
"""The model that SQL leaves unfinished: :func:`write_changes` completes its rows."""

PREVIOUS_TABLES: Final = {
    "daily_figures": "date DATE, table_name VARCHAR, metric VARCHAR, check_group VARCHAR, check_type VARCHAR,"
    " value DOUBLE, first_seen_build VARCHAR, is_complete BOOLEAN",
    "restatements": "date DATE, table_name VARCHAR, metric VARCHAR, check_group VARCHAR, check_type VARCHAR,"
    ' was DOUBLE, "is" DOUBLE, first_seen_build VARCHAR, changed_by VARCHAR, changed_at TIMESTAMP,'
    " was_complete BOOLEAN, is_complete BOOLEAN",
}
"""Tables of the published warehouse that models read, with their columns."""

Partitions = dict[str, dict[str, Partition]]
"""Table name → day → partition; the day of a table that is not daily is WHOLE."""

BUILD_TABLES: Final[Mapping[str, tuple[str, tuple[tuple[str, str], ...]]]] = {
    "build_info": (
        "One row that describes this build.",
        (
            ("built_at", "When the build began (UTC)."),
            ("run_id", "The run that built it."),
            ("sequence", "Number of the publication, which rises over all hosts; NULL without a ledger."),
            ("partitions", "Days with a partition in the lake."),
            ("rows", "Rows of all models, of `build_partitions` and of `build_inputs` together."),
            ("code_version", "Version of the pipeline."),
            ("duckdb_version", "Version of DuckDB that wrote the file."),
            ("first_date", "First day with a partition."),
            ("last_date", "Last day with a partition."),
            ("price_per_call", "`DEEPXL_PRICE_PER_CALL` at the time; NULL if it was not set."),
            ("currency", "`DEEPXL_CURRENCY` at the time: the ISO 4217 code of all amounts."),
        ),
    ),
    "build_inputs": (
        "The inputs of this build other than the partitions.",
        (
            ("name", "A setting; or `code`, `duckdb`, `labels` or `pseudonym_key`."),
            ("value", "Its value or its identity, never a secret; NULL if there was none."),
        ),
    ),
    "build_partitions": (
        "The partitions of the lake that this build read.",
        (
            ("date", "Day of the partition."),
            ("table_name", "Table of the lake."),
            ("rows", "Rows in the partition; NULL for `verification_tags` if `KYC_MIN_CELL` is above 1."),
            ("source", "Identity of the responses that a curated partition was made from."),
            ("version", "Identity of the file; it changes whenever the partition is replaced."),
            ("is_complete", "Whether no submission of the day is undecided; see `days`."),
        ),
    ),
    "build_checks": (
        "The checks that ran on this build before it was published.",
        (
            ("check_name", "Name of the check: a file in `sql/checks/`."),
            ("severity", "warning or error: a failed check of severity error stops publication."),
            ("passed", "Whether the check found no violation."),
            ("count", "Number of violations."),
            ("unit", "What `count` counts."),
            ("description", "What must hold; after a violation, what was found and what to do."),
            ("sample", "The first violations as JSON: ids and counts."),
        ),
    ),
}
"""Tables about the build itself: name → (description, columns), as in a model."""


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """The result of a build: rows per table, the days covered, and seconds per model."""

    tables: Mapping[str, int]
    partitions: tuple[str, ...]
    seconds: Mapping[str, float]
    built_ns: int
    """When the build began, in nanoseconds since the epoch."""
    views_read: Partitions
    """The partitions read, if facts are views over the lake: the views are valid until one changes."""

    @property
    def rows(self) -> int:
        """Total rows of all tables."""
        return sum(self.tables.values())

    def is_current(self, lake: Lake) -> bool:
        """Whether the views still show what the build read."""
        return _unchanged(lake, self.views_read)


def build(
    lake: Lake,
    destination: Path,
    *,
    run_id: str,
    sequence: int | None = None,
    choices: Choices = Choices(),  # noqa: B008 - immutable
    previous: Place | None = None,
    memory_limit: str | None = None,
    threads: int | None = None,
    max_fact_rows: int | None = None,
    inputs: Mapping[str, str | None] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> BuildSummary:
    """Builds the warehouse as a new file, `destination`. The lake may be empty, and a day may lack tables.

    If small cells are hidden, the exact tables go into the file at its :func:`restricted_path`.

    `sequence` is that of the publication. `previous` is the published warehouse, if there is one:
    `restatements` says what differs from it. `memory_limit` is DuckDB's, such as `2GB`; DuckDB spills the
    rest to disk beside the destination. A fact with more rows than `max_fact_rows` becomes a view over the
    lake instead of a table, unless the lake is in an object store, where each reader would need credentials.
    `inputs` is recorded in `build_inputs`: see :mod:`up_to_date`. `progress` receives each model's name and
    seconds.

    Raises :class:`KycError` if a partition cannot be read or has the wrong columns, or if the lake keeps
    changing.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_READ_ATTEMPTS):
        files = list_partitions(lake)
        try:
            with (
                _local_copies(lake, files) as copies,
                quiet_duckdb.connect(
                    destination, config=_config(destination, memory_limit, threads)
                ) as connection,
            ):
                run = _Build(connection, lake, files, choices, max_fact_rows, progress, copies)
                run.read(run_id, previous, restricted_path(destination))
                # With views, the models read the lake too: then only the check after them counts.
                if run.views or _unchanged(lake, files):
                    run.derive()
                    if not run.views or _unchanged(lake, files):
                        return run.finish(run_id, sequence, inputs or {})
        except (duckdb.Error, OSError) as error:
            remove_draft(destination)
            if is_disk_fault(error):
                raise
            if _unchanged(lake, files):
                raise _user_error(lake, files, error) from error
        remove_draft(destination)
    raise KycError("the lake kept changing during the build: build again when no run is writing")


def open_draft(draft: Path, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
    """Opens a finished build read-only, for its checks, with a build's memory limit."""
    return quiet_duckdb.connect(str(draft), read_only=True, config=_config(draft, memory_limit, None))


@contextmanager
def open_day(lake: Lake, date: str, queries: Mapping[str, str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection for `queries` (name → SQL) over `date` alone: the models that they read are views."""
    models = steps_for(queries)
    sources = {source for model in models for source in model.sources}
    files = {
        table.name: lake.partitions(table, date) if table.is_daily else lake.partitions(table)
        for table in ALL_TABLES
        if table.name in sources
    }
    with (
        _local_copies(lake, files) as copies,
        scratch_folder() as spill,
        quiet_duckdb.connect(config={"temp_directory": spill}) as connection,
    ):
        _Build(connection, lake, files, Choices(), None, None, copies).attach()
        for model in models:
            connection.execute(f"CREATE VIEW {model.name} AS {model.sql}")
        yield connection


def record_checks(draft: Path, results: Sequence[CheckResult]) -> None:
    """Writes the results of a build's checks into its table `build_checks`."""
    with quiet_duckdb.connect(str(draft), config=_config(draft, None, None)) as connection:
        connection.execute(
            "CREATE TABLE build_checks (check_name VARCHAR, severity VARCHAR, passed BOOLEAN, count BIGINT,"
            " unit VARCHAR, description VARCHAR, sample VARCHAR)"
        )
        connection.executemany(
            "INSERT INTO build_checks VALUES ($1, $2, $3, $4, $5, $6, $7)",
            [
                [
                    result.name,
                    result.severity.value,
                    result.passed,
                    result.metadata["count"],
                    result.metadata["unit"],
                    result.description,
                    json.dumps(list(result.sample), ensure_ascii=False),
                ]
                for result in results
            ],
        )
        _comment(connection, "TABLE", "build_checks", *BUILD_TABLES["build_checks"])
        connection.execute("CHECKPOINT")


def list_partitions(lake: Lake) -> Partitions:
    """The lake's current partitions by table and day."""
    lake.fs.invalidate_cache()
    return {table.name: lake.partitions(table) for table in _INPUTS}


def labels_version(lake: Lake) -> str | None:
    """The identity of the labels' file; None if there is none. Changes whenever it is replaced."""
    found = lake.partitions(LABELS).get(WHOLE)
    return partition_version(found) if found else None


def partition_version(partition: Partition) -> str:
    """The identity of a listed partition's file, as in `build_partitions.version`."""
    return hashlib.sha256("\n".join((partition.path, *partition.version)).encode()).hexdigest()[:16]


def _unchanged(lake: Lake, files: Partitions) -> bool:
    """Whether every listed partition is unchanged. The build did not read new ones, so they do not matter."""
    now = list_partitions(lake)
    return all(partitions.items() <= now[name].items() for name, partitions in files.items())


def _config(
    destination: Path, memory_limit: str | None, threads: int | None
) -> dict[str, str | bool | int | float | list[str]]:
    config: dict[str, str | bool | int | float | list[str]] = {
        "storage_compatibility_version": STORAGE_VERSION,
        "temp_directory": f"{destination}.tmp",
    }
    if memory_limit:
        config["memory_limit"] = memory_limit
    if threads:
        config["threads"] = threads
    return config


@contextmanager
def _local_copies(lake: Lake, files: Partitions) -> Iterator[Mapping[str, str]]:
    """Local copies of what is read again and again, by path; none if the lake is local."""
    if lake.is_local:
        yield {}
        return
    with scratch_folder() as folder:
        every = (partition for partitions in files.values() for partition in partitions.values())
        yield copy_small(lake, every, Path(folder))


def _user_error(lake: Lake, files: Partitions, error: Exception) -> KycError:
    """The error for the user; it names the unreadable partition, if there is one."""
    for table in _INPUTS:
        for date in files[table.name]:
            try:
                lake.row_count(table, date)
            except KycError as unreadable:
                return unreadable
    if isinstance(error, duckdb.OutOfMemoryException):
        return KycError("the build needs more memory than KYC_WAREHOUSE_MEMORY allows: raise it")
    # A commit that cannot be written is a TransactionException.
    if isinstance(error, duckdb.IOException | duckdb.TransactionException):
        return KycError(
            "the warehouse could not be built: a file could not be read or written; if the disk of "
            "KYC_WAREHOUSE is full, free space and publish again; else see --verbose"
        )
    return KycError(f"the warehouse could not be built ({type(error).__name__}): see --verbose")


class _Build:
    """One attempt at a build."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        lake: Lake,
        files: Partitions,
        choices: Choices,
        max_fact_rows: int | None,
        progress: Callable[[str, float], None] | None,
        copies: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._connection = connection
        self._copies = copies
        self._lake = lake
        self._files = files
        self._choices = choices
        self._max_fact_rows = max_fact_rows
        self._progress = progress
        self._built_at = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        self._seconds: dict[str, float] = {}
        self._rows: dict[str, int] = {}
        self._scans: dict[str, str] = {}
        self.views: set[str] = set()

    def read(self, run_id: str, previous: Place | None, restricted: Path) -> None:
        """Runs the models that read the lake."""
        self.attach()
        if self._hides_cells:
            self._connection.execute(f"ATTACH {literal(str(restricted))} AS {EXACT}")
        self._connection.execute("SET VARIABLE run_id = $1::VARCHAR", [run_id])
        self._connection.execute("SET VARIABLE built_at = $1::TIMESTAMP", [self._built_at])
        self._remember(previous)
        self._run_each([model for model in load_steps() if model.reads_lake])

    def attach(self) -> None:
        """Creates what models read: the schema `lake`, the choices and the macros."""
        if not self._lake.is_local and any(
            partition.path not in self._copies
            for partitions in self._files.values()
            for partition in partitions.values()
        ):
            self._connection.register_filesystem(listed_filesystem(self._lake))
        self._connection.execute(f"ATTACH ':memory:' AS {LAKE}")
        for table in _INPUTS:
            if table.name not in self._files:
                continue
            self._scans[table.name] = scan = self._scan(table)
            self._connection.execute(f"CREATE VIEW {LAKE}.{table.name} AS {scan}")
        self._record_partitions()
        self._choices.set_variables(self._connection)
        self._connection.execute(macros_sql())

    def derive(self) -> None:
        """Runs the other models."""
        self._run_each([model for model in load_steps() if not model.reads_lake])
        if self._hides_cells:
            self._derive_exact()

    @property
    def _hides_cells(self) -> bool:
        return self._choices.min_cell > 1

    @property
    def _restricted(self) -> Collection[str]:
        """The models that only the restricted file has."""
        return ONLY_EXACT if self._hides_cells else ()

    def _derive_exact(self) -> None:
        """Runs the models that count by company or dimension again, on the exact submissions."""
        execute = self._connection.execute
        ((published,),) = execute("SELECT current_database()").fetchall()
        execute(f"SET search_path = '{EXACT}.main,\"{published}\".main'")
        for model in sliced_models():
            self._create(model)
        execute(f'USE "{published}"')

    def finish(self, run_id: str, sequence: int | None, inputs: Mapping[str, str | None]) -> BuildSummary:
        """Writes the tables about the build, and all comments."""
        execute = self._connection.execute
        execute("BEGIN")  # one transaction: without it, every comment is a disk write
        days = sorted({date for partitions in self._files.values() for date in partitions} - {WHOLE})
        # The rows that `verification_tags` leaves out would tell how many of the hidden have the tag.
        rows = "if(table_name = 'verification_tags', NULL, rows)" if self._hides_cells else "rows"
        execute(
            f"CREATE TABLE build_partitions AS SELECT p.* EXCLUDE (changed) REPLACE ({rows} AS rows),"
            f" d.is_complete FROM {LAKE}.partitions AS p JOIN days AS d USING (date)"
            " ORDER BY date, table_name"
        )
        execute("CREATE TABLE build_inputs (name VARCHAR, value VARCHAR)")
        for name, value in inputs.items():
            execute("INSERT INTO build_inputs VALUES ($1, $2)", [name, value])
        for name in ("build_partitions", "build_inputs"):
            self._rows[name] = self._count(name)
        execute(
            "CREATE TABLE build_info AS SELECT $1::TIMESTAMP AS built_at, $2::VARCHAR AS run_id,"
            " $3::BIGINT AS sequence, $4::BIGINT AS partitions, $5::BIGINT AS rows,"
            " $6::VARCHAR AS code_version, $7::VARCHAR AS duckdb_version, $8::DATE AS first_date,"
            " $9::DATE AS last_date, $10::DECIMAL(18, 6) AS price_per_call, $11::VARCHAR AS currency",
            [
                self._built_at,
                run_id,
                sequence,
                len(days),
                sum(self._rows.values()),
                __version__,
                duckdb.__version__,
                days[0] if days else None,
                days[-1] if days else None,
                self._choices.price_per_call,
                self._choices.currency,
            ],
        )
        built_ns = time_of_build(self._connection)
        for model in load_models():
            if model.name in self._restricted:
                continue
            kind = "VIEW" if model.name in self.views else "TABLE"
            _comment(self._connection, kind, model.name, model.description, model.columns)
        for name in ("build_info", "build_inputs", "build_partitions"):
            _comment(self._connection, "TABLE", name, *BUILD_TABLES[name])
        for macro in load_macros():
            execute(f"COMMENT ON MACRO {macro.name} IS {literal(macro.description)}")
        execute("COMMIT")
        if self._hides_cells:
            self._finish_exact()
        execute(f"DETACH {LAKE}")
        execute(f"DETACH {PREVIOUS}")
        execute("CHECKPOINT")
        views_read = self._files if self.views else {}
        return BuildSummary({**self._rows, "build_info": 1}, tuple(days), self._seconds, built_ns, views_read)

    def _finish_exact(self) -> None:
        """Writes `build_info` and all comments of the restricted file."""
        execute = self._connection.execute
        execute("BEGIN")  # a transaction can write one database
        execute(f"CREATE TABLE {EXACT}.build_info AS FROM build_info")
        _comment(self._connection, "TABLE", f"{EXACT}.build_info", *BUILD_TABLES["build_info"])
        exact = {_HIDDEN_IN, *self._restricted, *(model.name for model in sliced_models())}
        for model in load_models():
            if model.name in exact:
                _comment(self._connection, "TABLE", f"{EXACT}.{model.name}", model.description, model.columns)
        execute("COMMIT")
        execute(f"DETACH {EXACT}")

    def _run_each(self, models: Sequence[Model]) -> None:
        again = sliced_models() if self._hides_cells else ()
        kept = {name for model in again for name in model.depends_on} - {model.name for model in again}
        for model in models:
            self._run(model)
            # Drop an intermediate model after its last reader, because it takes memory or spill space.
            later = (step for step in load_steps() if step.name not in self._seconds)
            still_read = {name for step in later for name in step.depends_on} | kept
            published = {step.name for step in load_models()}
            for name in set(model.depends_on) - published - still_read:
                self._connection.execute(f"DROP TABLE {name}")

    def _run(self, model: Model) -> None:
        started = time.perf_counter()
        if self._is_too_large(model):
            self._connection.execute(f"CREATE VIEW {model.name} AS {self._view_sql(model)}")
            self.views.add(model.name)
        elif model.name == _HIDDEN_IN and self._hides_cells:
            self._connection.execute(f"CREATE TABLE {EXACT}.{model.name} AS {model.sql}")
            publish_submissions(self._connection, self._choices.min_cell)
        elif model.name in self._restricted:
            self._connection.execute(f"CREATE TABLE {EXACT}.{model.name} AS {model.sql}")
            self._connection.execute(f"CREATE TEMP VIEW {model.name} AS FROM {EXACT}.{model.name}")
        else:
            self._create(model)
        if model.name == _LABELS_HIDDEN_IN and self._hides_cells:
            hide_label_cells(self._connection, self._choices.min_cell)
        if model.published:
            self._rows[model.name] = self._count(model.name)
        self._seconds[model.name] = time.perf_counter() - started
        if self._progress:
            self._progress(model.name, self._seconds[model.name])

    def _create(self, model: Model) -> None:
        kind = "TABLE" if model.published else "TEMP TABLE"
        self._connection.execute(f"CREATE {kind} {model.name} AS {model.sql}")
        if model.name == _CHANGES:
            write_changes(self._connection)

    def _is_too_large(self, model: Model) -> bool:
        """Whether the model is a fact with more rows than a table may have."""
        if self._max_fact_rows is None or not self._lake.is_local or model.name not in _FACTS_OVER_LAKE:
            return False
        return self._count(f"{LAKE}.{model.name}") > self._max_fact_rows

    def _view_sql(self, model: Model) -> str:
        """The model's SQL over this build's files, without the schema `lake`, which ends with the build."""
        sql = model.sql
        for name in model.sources:
            sql = sql.replace(f"{LAKE}.{name}", f"({self._scans[name]}) AS {name}")
        return sql

    def _scan(self, table: Table) -> str:
        """A SELECT of `date` and the table's columns without personal data, each cast to its type.

        A column that older files lack is NULL there. Without files, the result has no rows. A table that is
        not daily has no `date`.
        """
        files = map(self._local, self._files[table.name].values())
        paths = ", ".join(literal(duckdb_path(path)) for path in files)
        columns = [column for column in table.columns if not column.personal]
        added = self._choices.submission_columns() if table is SUBMISSIONS else {}
        empty = self._connection.from_arrow(pa.schema([(c.name, c.type) for c in columns]).empty_table())
        types = dict(zip(empty.columns, map(str, empty.types), strict=True))
        if not paths:
            nulls = [f"NULL::{types[column.name]} AS {column.name}" for column in columns]
            nulls += [f"NULL::{kind} AS {name}" for name, (_, kind) in added.items()]
            nulls = ["NULL::DATE AS date", *nulls] if table.is_daily else nulls
            return f"SELECT {', '.join(nulls)} WHERE false"
        source = f"read_parquet([{paths}], union_by_name = true, hive_partitioning = false, filename = true)"
        present = {str(row[0]) for row in self._connection.execute(f"DESCRIBE FROM {source}").fetchall()}
        values = [
            f"{column.name if column.name in present else 'NULL'}::{types[column.name]} AS {column.name}"
            for column in columns
        ]
        values += [f"({sql})::{kind} AS {name}" for name, (sql, kind) in added.items()]
        values = [f"{_day_of('filename')} AS date", *values] if table.is_daily else values
        return f"SELECT {', '.join(values)} FROM {source}"

    def _record_partitions(self) -> None:
        """Creates `lake.partitions`: the partitions read, with rows and source from the files' footers."""
        self._connection.execute(
            f"CREATE TABLE {LAKE}.partitions"
            " (date DATE, table_name VARCHAR, rows BIGINT, source VARCHAR, changed BIGINT, version VARCHAR)"
        )
        listed = [
            (self._local(partition), day, name, partition_version(partition))
            for name, partitions in self._files.items()
            for day, partition in partitions.items()
            if day != WHOLE
        ]
        if not listed:
            return
        paths = [duckdb_path(path) for path, *_ in listed]
        self._connection.execute(
            f"""
            INSERT INTO {LAKE}.partitions
            SELECT v.date, v.table_name, f.num_rows, k.source, coalesce(k.changed, 0), v.version
            FROM parquet_file_metadata($5) AS f
            JOIN (
                SELECT
                    unnest($1::VARCHAR[]) AS file_name,
                    unnest($2::DATE[]) AS date,
                    unnest($3::VARCHAR[]) AS table_name,
                    unnest($4::VARCHAR[]) AS version
            ) AS v ON v.file_name = f.file_name
            LEFT JOIN (
                SELECT
                    file_name,
                    any_value(decode(value)) FILTER (WHERE key = 'source'::BLOB) AS source,
                    any_value(decode(value)) FILTER (WHERE key = '{CHANGED_KEY}'::BLOB)::BIGINT AS changed
                FROM parquet_kv_metadata($5)
                WHERE key IN ('source'::BLOB, '{CHANGED_KEY}'::BLOB)
                GROUP BY file_name
            ) AS k ON k.file_name = f.file_name
            """,
            [*(list(values) for values in zip(*listed, strict=True)), paths],
        )

    def _remember(self, previous: Place | None) -> None:
        """Creates the schema `previous`. Its tables stay empty without a readable published build."""
        self._connection.execute(f"ATTACH ':memory:' AS {PREVIOUS}")
        for table, columns in PREVIOUS_TABLES.items():
            self._connection.execute(f"CREATE TABLE {PREVIOUS}.{table} ({columns})")
        if previous is None:
            return
        with suppress(KycError, duckdb.Error), open_warehouse(previous) as published:
            for table in PREVIOUS_TABLES:
                rows = published.sql(f"FROM {table}").to_arrow_table()
                self._connection.from_arrow(rows).insert_into(f"{PREVIOUS}.main.{table}")

    def _local(self, partition: Partition) -> str:
        """The path to read the partition from: its copy's, if it has one."""
        return self._copies.get(partition.path, partition.path)

    def _count(self, name: str) -> int:
        return int(self._connection.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0])


def _comment(
    connection: duckdb.DuckDBPyConnection,
    kind: str,
    name: str,
    description: str,
    columns: Sequence[tuple[str, str]],
) -> None:
    comments = [f"COMMENT ON {kind} {name} IS {literal(description)}"]
    comments += [f'COMMENT ON COLUMN {name}."{column}" IS {literal(meaning)}' for column, meaning in columns]
    connection.execute(";".join(comments))


def _day_of(path: str) -> str:
    """The SQL expression for the day of the partition at `path`, itself an expression."""
    return f"regexp_extract({path}, {literal(DAY_OF_PATH)}, 1)::DATE"
