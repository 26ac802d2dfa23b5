"""Dagster's storage without what it does again for each instance and each event: tests have many of both."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory

# Private names of Dagster, which nothing here imports: `monkeypatch` fails if a version renames them.
_EVENT_LOG = "dagster._core.storage.event_log"
_IN_MEMORY_STORAGE = f"{_EVENT_LOG}.in_memory.InMemoryEventLogStorage"


@contextmanager
def storage() -> Iterator[None]:
    """Within it, instances are made and store events in a fraction of the time."""
    with _migrations_are_read_once(), _engines_are_made_once(), _events_in_memory_have_one_connection():
        yield


@contextmanager
def _migrations_are_read_once() -> Iterator[None]:
    """Dagster would read its 89 migrations for both databases of each new instance."""
    read = ScriptDirectory.from_config
    known: dict[str | None, ScriptDirectory] = {}

    def from_config(config: Config) -> ScriptDirectory:
        folder = config.get_main_option("script_location")
        if folder not in known:
            known[folder] = read(config)
        return known[folder]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", from_config)
        yield


@contextmanager
def _engines_are_made_once() -> Iterator[None]:
    """Dagster would make one for each event that it stores on disk, and compile the same SQL each time."""
    known: dict[str, sqlalchemy.Engine] = {}

    def engine(url: str, **options: Any) -> sqlalchemy.Engine:
        if url not in known:
            known[url] = sqlalchemy.create_engine(url, **options)
        return known[url]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{_EVENT_LOG}.sqlite.sqlite_event_log.create_engine", engine)
        yield


@contextmanager
def _events_in_memory_have_one_connection() -> Iterator[None]:
    """Dagster would connect again for each access to them, and read the columns of a table for each event."""

    @contextmanager
    def connect(storage: Any) -> Iterator[sqlalchemy.Connection]:
        with storage._db_lock, storage._held_conn.begin():
            yield storage._held_conn

    for_any_thread = partial(sqlalchemy.create_engine, connect_args={"check_same_thread": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{_EVENT_LOG}.in_memory.create_engine", for_any_thread)
        patch.setattr(f"{_IN_MEMORY_STORAGE}._connect", connect)
        patch.setattr(f"{_IN_MEMORY_STORAGE}._has_asset_key_col_on_connection", lambda *_: True)
        yield
