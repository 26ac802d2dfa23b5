"""New ledgers in milliseconds: most tests need one, and Alembic takes 70 ms of processor time to make it.

The first new ledger of a process on each database is migrated as in production. The next ones get the very
statements that the driver received then, in one transaction under the same locks.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Connection, Engine, event, text, update

from kyc_pipeline.ledger import database
from kyc_pipeline.ledger.schema import identity

really_migrate = database._migrate


class Statement(NamedTuple):
    """What a driver received."""

    text: str
    parameters: Any


_recorded: dict[str, list[Statement]] = {}
"""The changes that made a new ledger, by the database's name."""


def _record(engine: Engine) -> None:
    statements: list[Statement] = []

    def note(_connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.lstrip().startswith(("SELECT", "PRAGMA", "BEGIN")):
            statements.append(Statement(statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        really_migrate(engine)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    if any("CREATE TABLE alembic_version" in statement.text for statement in statements):  # it was new
        _recorded[engine.dialect.name] = statements


def _migrate(engine: Engine) -> None:
    """Takes the place of the function in `database`."""
    statements = _recorded.get(engine.dialect.name)
    if statements is None:
        _record(engine)
        return
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": database._MIGRATION_LOCK})
        is_new = database._revision(connection) is None
        if is_new:
            cursor = connection.connection.cursor()
            for statement in statements:
                cursor.execute(*statement)
            connection.execute(update(identity).values(ledger_id=secrets.token_hex(16)))
    if not is_new:
        really_migrate(engine)


@contextmanager
def quickly_made() -> Iterator[None]:
    """New ledgers are made quickly while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_migrate", _migrate)
        yield
