"""Loads the warehouse's models: one SQL file per table, with a header that is its only description.

The folder is the model's kind: `sql/facts/`, `sql/marts/`, or `sql/intermediate/` for temporary tables that
several marts read. The header is a comment: the description, an empty comment line, then one `name: meaning`
per column, in order (an indented line continues the one above). DuckDB's comments, Dagster's descriptions and
the data dictionary come from it. Dependencies come from the SQL: `lake.<table>` is a table of the lake,
`previous.<table>` one of the published warehouse, any other name another model. A parameter such as `{low_n}`
stands for a value of :mod:`kyc_pipeline.rules`, or for the curated tables.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Final

import duckdb

from kyc_pipeline import quiet_duckdb
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.tables import CURATED_TABLES
from kyc_pipeline.rules import SQL_PARAMETERS

LAKE: Final = "lake"
"""The schema under which models read the lake."""
PREVIOUS: Final = "previous"
"""The schema under which models read the published warehouse, which their build will replace."""
_COUNTS_BY_SLICE: Final = ("submission_counts", "labelled_slices")
_COLUMN: Final = re.compile(r"^(\w+): (.+)$")
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_MACRO: Final = re.compile(r"((?:^--.*\n)+)CREATE MACRO (\w+)\((.*?)\)", re.MULTILINE)
_PARAMETERS: Final = SQL_PARAMETERS | {
    "curated_tables": ", ".join(f"'{table.name}'" for table in CURATED_TABLES),
    "curated_table_count": str(len(CURATED_TABLES)),
}


class ModelKind(StrEnum):
    """The kind of a model, named like its folder under `sql/`."""

    FACT = "facts"
    MART = "marts"
    INTERMEDIATE = "intermediate"


@dataclass(frozen=True, slots=True)
class Model:
    """One table of the warehouse: `columns` are (name, meaning) in order, `sql` is one SELECT."""

    name: str
    kind: ModelKind
    description: str
    columns: tuple[tuple[str, str], ...]
    sql: str
    depends_on: tuple[str, ...]
    """The other models that it reads."""
    sources: tuple[str, ...]
    """The tables of the lake that it reads."""
    reads_lake: bool
    """Whether the model, or one that depends on it, reads the lake. These run first, on unchanged files."""

    @property
    def path(self) -> str:
        """Its file, relative to the repository."""
        return f"sql/{self.kind}/{self.name}.sql"

    @property
    def published(self) -> bool:
        """Whether it is in the published warehouse."""
        return self.kind is not ModelKind.INTERMEDIATE


def sql_folder() -> Path:
    """The folder of the SQL files: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "sql", package.parent / "sql"):
        if folder.is_dir():
            return folder
    raise KycError("the folder sql/ with the warehouse's models is missing: install the package again")


def parse_header(name: str, text: str) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """Splits the file `sql/<name>.sql` into description, columns and SQL.

    Raises :class:`KycError` if the header is malformed.
    """
    lines = _fill_in(name, text).splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    comments = [line[2:].removeprefix(" ").rstrip() for line in lines[:end]]
    gap = comments.index("") if "" in comments else len(comments)
    columns: list[tuple[str, str]] = []
    for line in comments[gap + 1 :]:
        if match := _COLUMN.match(line):
            columns.append((match[1], match[2]))
        elif line.startswith("  ") and columns:
            column, meaning = columns[-1]
            columns[-1] = (column, f"{meaning} {line.strip()}")
        else:
            raise KycError(f"sql/{name}.sql: the header needs lines like `-- column: meaning`, not {line!r}")
    return " ".join(comments[:gap]).strip(), tuple(columns), "\n".join(lines[end:]).strip()


def _fill_in(name: str, text: str) -> str:
    """The file's text with the values of its parameters. Raises :class:`KycError` for an unknown one."""
    if unknown := set(_PARAMETER.findall(text)) - _PARAMETERS.keys():
        raise KycError(f"sql/{name}.sql: unknown parameter {', '.join(sorted(unknown))}")
    return _PARAMETER.sub(lambda match: _PARAMETERS[match[1]], text)


def _connect() -> duckdb.DuckDBPyConnection:
    """A connection that only parses SQL, so it needs no second thread."""
    return quiet_duckdb.connect(config={"threads": 1})


def _reads(connection: duckdb.DuckDBPyConnection, name: str, sql: str) -> tuple[set[str], set[str]]:
    """The models and the tables of the lake that the query of `sql/<name>.sql` reads: DuckDB's syntax tree.

    Raises :class:`KycError` if it is not one SELECT, and KeyboardInterrupt on Ctrl-C.
    """
    try:
        [(text,)] = connection.execute("SELECT json_serialize_sql($1)", [sql]).fetchall()
    except RuntimeError as error:  # DuckDB's for Ctrl-C
        raise KeyboardInterrupt from error
    tree = json.loads(text)
    if tree["error"]:
        raise KycError(f"sql/{name}.sql is not valid: {tree['error_message']}")
    if len(tree["statements"]) != 1:
        raise KycError(f"sql/{name}.sql must be one SELECT")
    models: set[str] = set()
    sources: set[str] = set()
    ctes: set[str] = set()
    for node in _nodes(tree):
        if "cte_map" in node:
            ctes.update(entry["key"] for entry in node["cte_map"]["map"])
        elif node.get("type") == "BASE_TABLE" and node["schema_name"] != PREVIOUS:
            (sources if node["schema_name"] == LAKE else models).add(node["table_name"])
    return models - ctes, sources


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    """The objects in a JSON document."""
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for child in tree:
            yield from _nodes(child)


def _read_model(connection: duckdb.DuckDBPyConnection, kind: ModelKind, path: Path) -> Model:
    name = f"{kind}/{path.stem}"
    description, columns, sql = parse_header(name, path.read_text(encoding="utf-8"))
    if not description or not columns:
        raise KycError(f"sql/{name}.sql: the header must describe the table and each column")
    models, sources = _reads(connection, name, sql)
    return Model(
        name=path.stem,
        kind=kind,
        description=description,
        columns=columns,
        sql=sql,
        depends_on=tuple(sorted(models)),
        sources=tuple(sorted(sources)),
        reads_lake=bool(sources),
    )


@lru_cache(maxsize=1)
def load_steps() -> tuple[Model, ...]:
    """Every model, intermediate ones included, in topological order, then by name.

    Raises :class:`KycError` for a malformed header, invalid SQL, an unknown table or a cycle.
    """
    with _connect() as connection:
        models = {
            path.stem: _read_model(connection, kind, path)
            for kind in ModelKind
            for path in (sql_folder() / kind).glob("*.sql")
        }
    for model in models.values():
        if unknown := set(model.depends_on) - models.keys():
            raise KycError(f"{model.path} reads {', '.join(sorted(unknown))}, which is not a model")
    sorter = TopologicalSorter({name: model.depends_on for name, model in models.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        raise KycError(f"the models form a cycle: {' -> '.join(error.args[1])}") from None
    ordered: list[Model] = []
    ready: list[str] = []
    while sorter.is_active():
        first, *ready = sorted([*ready, *sorter.get_ready()])
        ordered.append(models[first])
        sorter.done(first)
    early: set[str] = set()
    for model in reversed(ordered):
        if model.sources or model.name in early:
            early |= {model.name, *model.depends_on}
    ordered = [replace(model, reads_lake=model.name in early) for model in ordered]
    return tuple(sorted(ordered, key=lambda model: not model.reads_lake))


def steps_for(queries: Mapping[str, str]) -> list[Model]:
    """The models that `queries` (name → SQL) read, directly or not, in the order of :func:`load_steps`.

    Raises :class:`KycError` for one that is not one SELECT.
    """
    needed = set(_models_read(tuple(queries.items())))
    found: list[Model] = []
    for model in reversed(load_steps()):
        if model.name in needed:
            found.insert(0, model)
            needed.update(model.depends_on)
    return found


@lru_cache(maxsize=8)  # for each day, flatten asks for those of the same checks
def _models_read(queries: tuple[tuple[str, str], ...]) -> frozenset[str]:
    with _connect() as connection:
        return frozenset(model for query in queries for model in _reads(connection, *query)[0])


@lru_cache(maxsize=1)
def sliced_models() -> tuple[Model, ...]:
    """The models that count by company or dimension, in the order of :func:`load_steps`."""
    found = set(_COUNTS_BY_SLICE)
    while more := {m.name for m in load_steps() if found.intersection(m.depends_on)} - found:
        found |= more
    return tuple(model for model in load_steps() if model.name in found)


@lru_cache(maxsize=1)
def load_models() -> tuple[Model, ...]:
    """The warehouse's tables in the order of :func:`load_steps`.

    Their dependencies skip intermediate models: they name what those read.
    """
    seen: dict[str, Model] = {}
    for model in load_steps():
        depends_on, sources = set(model.depends_on), set(model.sources)
        for read in (seen[name] for name in model.depends_on if not seen[name].published):
            depends_on = depends_on - {read.name} | set(read.depends_on)
            sources |= set(read.sources)
        seen[model.name] = replace(
            model, depends_on=tuple(sorted(depends_on)), sources=tuple(sorted(sources))
        )
    return tuple(model for model in seen.values() if model.published)


@dataclass(frozen=True, slots=True)
class Macro:
    """A SQL function of the published warehouse, shared by models and analysts."""

    name: str
    parameters: str
    description: str


def macros_sql() -> str:
    """The SQL that creates the macros. The temporary ones are not in the published file."""
    return "\n".join(
        _fill_in(f"macros/{path.stem}", path.read_text(encoding="utf-8"))
        for path in sorted((sql_folder() / "macros").glob("*.sql"))
    )


@lru_cache(maxsize=1)
def load_macros() -> tuple[Macro, ...]:
    """Every published macro by name. Raises :class:`KycError` for one without a comment above it."""
    sql = macros_sql()
    found = [
        Macro(name, parameters, " ".join(line.removeprefix("--").strip() for line in comment.splitlines()))
        for comment, name, parameters in _MACRO.findall(sql)
    ]
    if len(found) != sql.count("CREATE MACRO"):
        raise KycError("sql/macros/: a comment must stand above each macro")
    return tuple(sorted(found, key=lambda macro: macro.name))
