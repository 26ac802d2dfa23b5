"""Many rows for one SQL statement: a JSON list of lists, sent as one parameter and read by the database.

`executemany` runs a statement for each row: on SQLite the interpreter's lock is given up and taken again at
each, which the event loop's thread pays for; on PostgreSQL each is a message. Here it is one, for any number
of rows.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BindParameter,
    ClauseElement,
    ColumnElement,
    Connection,
    CursorResult,
    String,
    Text,
    bindparam,
    cast,
    literal_column,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

_PARAMETER: Final = "rows"
_encoder = msgspec.json.Encoder()
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


class Rows:
    """A table that exists in one statement only; its columns are named and typed by `columns`.

    Name a column with `rows["name"]`, and give the rows, with their values in the order of `columns`, by
    `rows.given(...)` as the statement's parameters.
    """

    def __init__(self, **columns: TypeEngine[Any]) -> None:
        self.names = tuple(columns)
        source: BindParameter[str] = bindparam(_PARAMETER, type_=Text())
        elements = _Elements(source).table_valued("value", name="given")
        self._columns: dict[str, ColumnElement[Any]] = {}
        for index, (name, kind) in enumerate(columns.items()):
            item = _Item(elements.c.value, literal_column(str(index)))
            self._columns[name] = item if isinstance(kind, String) else cast(item, kind)

    def __getitem__(self, name: str) -> ColumnElement[Any]:
        return self._columns[name]

    @staticmethod
    def given(rows: Iterable[tuple[Any, ...]]) -> dict[str, str]:
        """The statement's parameters. Values are strings, numbers and None.

        NUL and lone surrogates, which not every database can hold, become their JSON escapes.
        """
        values = list(rows)
        try:
            encoded = _encoder.encode(values)
            is_safe = b"\\u0000" not in encoded
        except UnicodeEncodeError:
            is_safe = False
        if not is_safe:
            encoded = _encoder.encode([tuple(map(_storable, row)) for row in values])
        return {_PARAMETER: encoded.decode()}


class Prepared:
    """A statement that is compiled once for each database, and then goes to the driver as it is.

    It halves what SQLAlchemy adds to a statement. Values are sent unconverted, so it is for parameters that
    the driver takes as they are: strings and numbers.
    """

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._compiled: dict[str, SQLCompiler] = {}

    def __call__(self, connection: Connection, parameters: Mapping[str, Any]) -> CursorResult[Any]:
        """Executes it in the connection's transaction."""
        dialect = connection.dialect
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            made = self._statement.compile(dialect=dialect)
            assert isinstance(made, SQLCompiler)
            compiled = self._compiled[dialect.name] = made
        values = compiled.construct_params(dict(parameters))
        if compiled.positiontup is not None:
            return connection.exec_driver_sql(compiled.string, tuple(values[n] for n in compiled.positiontup))
        return connection.exec_driver_sql(compiled.string, values)


def _storable(value: object) -> object:
    if not isinstance(value, str):
        return value
    return _UNSTORABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


class _Elements(FunctionElement[Any]):
    """The elements of a JSON list, as the rows of column `value`."""

    inherit_cache = True


class _Item(FunctionElement[str]):
    """One element of a JSON list, by its position."""

    inherit_cache = True
    type = Text()


@compiles(_Elements, "sqlite")
def _(element: _Elements, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_Elements, "postgresql")
def _(element: _Elements, compiler: SQLCompiler, **options: Any) -> str:
    return f"jsonb_array_elements(CAST({compiler.process(element.clauses, **options)} AS JSONB))"


@compiles(_Item, "sqlite")
def _(element: _Item, compiler: SQLCompiler, **options: Any) -> str:
    value, index = (compiler.process(clause, **options) for clause in element.clauses)
    return f"json_extract({value}, '$[{index}]')"


@compiles(_Item, "postgresql")
def _(element: _Item, compiler: SQLCompiler, **options: Any) -> str:
    value, index = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({value} ->> {index})"
