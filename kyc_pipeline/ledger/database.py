"""The ledger's database: connections, creation and migrations.

If a power cut could undo a claim, a call could be paid twice: `sqlite.py` says how SQLite is made durable;
each transaction on PostgreSQL sets `synchronous_commit`. A session there keeps no settings, prepared
statements or locks, since a pooler such as pgbouncer may give each transaction another session. On SQLite a
write transaction begins with `BEGIN IMMEDIATE`: it waits for the lock at its start and never fails half-way.
On PostgreSQL the same code takes row locks (`FOR UPDATE`, which SQLite ignores). If the server is away, a
transaction waits for it before it begins, while nothing is in doubt yet.
"""

import contextlib
import functools
import importlib.util
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from filelock import FileLock
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, Table, create_engine, event, inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from kyc_pipeline.errors import KycError, UsageError, missing_extra
from kyc_pipeline.ledger import file_systems, sqlite
from kyc_pipeline.ledger.schema import HEAD_REVISION
from kyc_pipeline.ledger.times import SYSTEM_CLOCK, Clock

LEASE_SECONDS: Final = 60.0
"""Time after which a lease expires unless it is renewed."""
BUSY_TIMEOUT_SECONDS: Final = 30.0
"""How long a statement waits for a lock that another process holds."""
AWAY_SECONDS: Final = 60.0
"""How long a transaction waits for a PostgreSQL server that is away."""
_AWAY_POLL_SECONDS: Final = 0.5
_MIGRATION_LOCK: Final = 0x6B79635F  # "kyc_": the key of PostgreSQL's advisory lock
_LIBPQ_OPTIONS: Final = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Close a dead connection within a minute. The URL can override them."""
_READ_ONLY: Final = "kyc_read_only"
_INVARIANT: Final = "invariant: "
"""How the message of a trigger begins, see `migrations/`: our own words, without data."""
_SETTINGS: Final = """
SELECT
    set_config('lock_timeout', '{lock}', true),
    set_config('idle_in_transaction_session_timeout', '{idle}', true),
    set_config('synchronous_commit', CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
"""
"""For one transaction, whatever the server, the database or the role defaults to; times in milliseconds.

Without `lock_timeout`, a row that another session keeps locked would block a run forever, unlike on SQLite. A
process that is suspended in a transaction must not keep its locks.
"""
_POOLER_REFUSES: Final = {
    "not allowed in statement pooling mode": (
        "a pooler such as pgbouncer gives each statement another session: set its pool_mode to transaction"
    ),
    "unsupported startup parameter": "the pooler refuses `options` in KYC_LEDGER_URL: remove them",
}
"""Part of the pooler's message → cause and remedy."""
_COMES_BACK: Final = ("starting up", "shutting down", "not yet accepting", "recovery", "too many", "slots")
"""Parts of a server's temporary refusals, unlike that of a wrong password."""
_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


class LedgerError(KycError):
    """The ledger cannot be used: disk full, database locked, connection lost, not a ledger."""


class ChangeRefused(LedgerError):
    """The database works but rejects this change."""


class InvariantBroken(ChangeRefused):
    """A change that should be impossible: the ledger or this code is wrong. The run ends."""


class WrongLedger(LedgerError):
    """This is not the right ledger: nothing may be sent, and trying again does not help."""


class Ledger:
    """The ledger at a SQLAlchemy URL. It is created and migrated on first use, and thread-safe.

    Every function that takes a ledger raises :class:`LedgerError` if the database cannot be used.
    """

    def __init__(
        self,
        url: str | SecretStr,
        *,
        lease_seconds: float = LEASE_SECONDS,
        busy_timeout: float = BUSY_TIMEOUT_SECONDS,
        away_seconds: float = AWAY_SECONDS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.lease_seconds = lease_seconds
        self.clock = clock
        self.generation = 0
        """The highest generation that this object has committed; see `identity.py`."""
        self._url = checked_url(url.get_secret_value() if isinstance(url, SecretStr) else url)
        self._busy_timeout = busy_timeout
        self._away_seconds = away_seconds
        self._engine: Engine | None = None
        self._is_ready = False
        self._opening = threading.Lock()
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        self._file_id: sqlite.FileId | None = None

    def __repr__(self) -> str:
        return f"Ledger({self.name!r})"

    def __reduce__(self) -> tuple[object, ...]:
        """For another process: the same ledger, not connected, by the system's clock. It has the password."""
        make = functools.partial(
            Ledger,
            self._url.render_as_string(hide_password=False),
            lease_seconds=self.lease_seconds,
            busy_timeout=self._busy_timeout,
            away_seconds=self._away_seconds,
        )
        return make, (), {"generation": self.generation}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The URL with its passwords hidden."""
        query = {key: "hidden" if "pass" in key.lower() else value for key, value in self._url.query.items()}
        return self._url.set(query=query).render_as_string(hide_password=True)

    @property
    def file(self) -> Path | None:
        """The SQLite file; None on PostgreSQL."""
        return Path(str(self._url.database)) if self._is_sqlite else None

    def exists(self) -> bool:
        """Whether the ledger exists. Does not create it."""
        if self.file is not None:
            if not (self.file.exists() and self.file.stat().st_size):
                return False
            with self._translated_file_errors(self.file):
                sqlite.has_log(self.file)
        with self._translated(), self._reached(self._connected().connect) as connection:
            # Without a write lock, which would wait for a writer, even for one in this thread.
            return _revision(connection.execution_options(**{_READ_ONLY: True})) is not None

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A write transaction, durable when the block ends.

        Raises :class:`LedgerError`; :class:`WrongLedger` if the file is no longer the one that was opened.
        """
        with (
            self._translated(),
            self._reached(self._ready().connect) as connection,
            connection.begin(),
        ):
            yield connection
            self._check_file()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction on one snapshot. On SQLite, commits wait until it ends."""
        with self._translated(), self._reached(self._ready().connect) as connection:
            yield connection.execution_options(**{_READ_ONLY: True})

    @contextlib.contextmanager
    def upkeep(self, file: Path) -> Iterator[sqlite3.Connection]:
        """A separate autocommit connection to the SQLite file, for VACUUM and PRAGMA. Closes the others."""
        self.close()
        with (
            self._translated(),
            contextlib.closing(sqlite3.connect(file, timeout=self._busy_timeout)) as connection,
        ):
            sqlite.configure(connection)
            yield connection

    def now(self, connection: Connection) -> int:
        """Microseconds since the epoch; on PostgreSQL by the server's clock, since hosts' clocks differ."""
        if self._is_sqlite or self.clock is not SYSTEM_CLOCK:
            return self.clock.now()
        return int(
            connection.execute(
                text("SELECT (extract(epoch FROM clock_timestamp())*1e6)::bigint")
            ).scalar_one()
        )

    def close(self) -> None:
        """Closes all connections. The next use reconnects."""
        with self._opening:
            if self._engine is not None:
                self._engine.dispose()
            self._engine = None
            self._is_ready = False
            self._file_id = None

    def _configure_sqlite(self, connection: sqlite3.Connection, _record: Any) -> None:
        sqlite.configure(connection)
        if self._file_id is None:
            self._file_id = sqlite.file_id(Path(str(self._url.database)))
        self._check_file()

    def _begin_postgres(self, connection: Connection) -> None:
        lock, idle = int(self._busy_timeout * 1000), int(LEASE_SECONDS * 1000)
        # No server-side cursor: it would set nothing until it is read.
        connection.exec_driver_sql(
            _SETTINGS.format(lock=lock, idle=idle),
            execution_options={"stream_results": False, "yield_per": None},
        )

    @property
    def is_open_but_gone(self) -> bool:
        """Whether the path no longer leads to the SQLite file that is open."""
        return self.file is not None and sqlite.file_id(self.file) != self._file_id

    def _check_file(self) -> None:
        if self.is_open_but_gone:
            raise WrongLedger(
                f"the file of the ledger {self.name} was removed or replaced while a run had it open: "
                "nothing more is sent; put it back, or run `kyc-pipeline ledger restore`"
            )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, PoolTimeout, sqlite3.Error, OSError) as error:
            if self._file_id is not None:
                self._check_file()  # SQLite calls a file that was moved away "readonly"
            cause = _cause(error)
            kind = ChangeRefused if isinstance(error, (DataError, IntegrityError)) else LedgerError
            if cause.startswith(_INVARIANT):
                kind = InvariantBroken
            # `from None`: a driver's message can quote the row that failed.
            raise kind(f"the ledger {self.name} cannot be used: {cause}") from None

    def _reached(self, connect: Callable[[], _T]) -> _T:
        """What `connect` returns. While a PostgreSQL server is away, tries again for up to `away_seconds`."""
        deadline: float | None = None
        while True:
            try:
                return connect()
            except OperationalError as error:
                if self._is_sqlite or not _is_away(error):
                    raise
                if deadline is None:
                    deadline = time.monotonic() + self._away_seconds
                    _logger.warning(
                        "the ledger %s cannot be reached: trying again for up to %.0f s",
                        self.name,
                        self._away_seconds,
                    )
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_AWAY_POLL_SECONDS)

    def _connected(self) -> Engine:
        with self._opening:
            if self._engine is None:
                self._engine = self._create_engine()
            return self._engine

    def _ready(self) -> Engine:
        """The engine of a database that exists and has the newest schema."""
        engine = self._connected()
        with self._opening:
            if not self._is_ready:
                self._prepare(engine)
                self._is_ready = True
        return engine

    def _prepare(self, engine: Engine) -> None:
        if self.file is None:
            self._reached(lambda: _migrate(engine))
            return
        with self._translated_file_errors(self.file):
            file_systems.check(self.file)
            sqlite.prepare(self.file, self._busy_timeout)
        with engine.connect() as connection:
            current = _revision(connection)
        if current != HEAD_REVISION:
            with FileLock(f"{self.file}.lock", mode=0o600):
                _migrate(engine)

    @contextlib.contextmanager
    def _translated_file_errors(self, file: Path) -> Iterator[None]:
        try:
            yield
        except sqlite.ForeignLog as error:
            raise WrongLedger(
                f"{error} beside the ledger {file} is the log of another database: move the log away, "
                "then run `kyc-pipeline ledger restore` with the backup"
            ) from None
        except sqlite.Damaged as error:
            raise damaged(self, error) from None
        except file_systems.MountedFile:
            raise WrongLedger(
                f"the file of the ledger {self.name} is mounted without its folder, where SQLite keeps the "
                "journal of an unfinished commit: nothing is sent; mount the folder instead"
            ) from None
        except file_systems.NetworkFolder as kind:
            raise WrongLedger(
                f"the ledger {self.name} is on a network file system ({kind}), where locks and flushes are "
                "not reliable and another machine could send too: nothing is sent; end all runs, copy the "
                "file to a local disk and set KYC_LEDGER_URL, or use PostgreSQL"
            ) from None

    def _create_engine(self) -> Engine:
        if not self._is_sqlite:
            options = {key: value for key, value in _LIBPQ_OPTIONS.items() if key not in self._url.query}
            engine = create_engine(
                self._url,
                hide_parameters=True,
                connect_args={**options, "prepare_threshold": None},
                pool_size=4,
                pool_pre_ping=True,
            )
            event.listen(engine, "begin", self._begin_postgres)
            return engine
        engine = create_engine(
            self._url, hide_parameters=True, connect_args={"timeout": self._busy_timeout}, pool_size=4
        )
        event.listen(engine, "connect", self._configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine


def insert_into(connection: Connection, table: Table) -> Any:
    """An INSERT that can have an ON CONFLICT clause, which each dialect has of its own."""
    dialect: Any = sqlite_dialect if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(table)


def insert_if_absent(connection: Connection, table: Table, **values: Any) -> bool:
    """Inserts a row; False if its key is taken. Only one of two concurrent inserts succeeds."""
    query = insert_into(connection, table).values(**values).on_conflict_do_nothing()
    return connection.execute(query.returning(*table.primary_key)).first() is not None


def damaged(ledger: Ledger, error: Exception) -> WrongLedger:
    """The error for a ledger whose file is broken."""
    return WrongLedger(
        f"the ledger {ledger.name} is damaged ({error}): nothing is sent; run `kyc-pipeline ledger restore` "
        "with the newest backup"
    )


def checked_url(url: str) -> URL:
    """`KYC_LEDGER_URL`, parsed. Raises :class:`UsageError` if no ledger can be there."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        raise UsageError(
            "KYC_LEDGER_URL: not a SQLAlchemy URL such as sqlite:///data/ledger.sqlite"
        ) from None
    if parsed.drivername in {"sqlite", "sqlite+pysqlite"}:
        if not parsed.database or parsed.database == ":memory:" or parsed.host:
            raise UsageError(
                "KYC_LEDGER_URL: the ledger must be a file, such as sqlite:///data/ledger.sqlite"
            )
    elif parsed.drivername != "postgresql+psycopg":
        raise UsageError("KYC_LEDGER_URL: must begin with sqlite:/// or postgresql+psycopg://")
    elif importlib.util.find_spec("psycopg") is None:
        raise missing_extra("KYC_LEDGER_URL=postgresql+psycopg://…", "postgres")
    return parsed


def _cause(error: Exception) -> str:
    """The cause without data: SQLite's messages are fixed texts, but other drivers' can quote rows."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(origin, sqlite3.Error):
        code = getattr(origin, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_CORRUPT:
            return f"{origin}; `kyc-pipeline ledger restore --replace` puts a backup in its place"
        if code == sqlite3.SQLITE_CANTOPEN:  # without a reason
            return (
                "the file, or its journal beside it, cannot be opened or created: is the disk full or "
                "broken, or the folder missing or closed?"
            )
        return str(origin)
    for words, cause in _POOLER_REFUSES.items():
        if words in str(origin):
            return cause
    if str(origin).startswith(_INVARIANT):
        return str(origin).splitlines()[0]
    if isinstance(origin, OSError) and origin.strerror:
        return origin.strerror
    if isinstance(error, OperationalError) and _is_away(error):
        return "no connection to the server"
    return type(origin).__name__


def _is_away(error: OperationalError) -> bool:
    """Whether no server responded, or it refuses connections for now."""
    if error.orig is None or getattr(error.orig, "sqlstate", None):
        return False  # of a statement
    message = str(error.orig)
    return "FATAL" not in message or any(words in message for words in _COMES_BACK)


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def take_turns(connection: Connection, key: int) -> None:
    """Waits until no other transaction has this lock of PostgreSQL, and holds it until this one ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def _migrate(engine: Engine) -> None:
    """Upgrades the schema to the newest revision in one transaction, one process at a time."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            take_turns(connection, _MIGRATION_LOCK)
        if _revision(connection) == HEAD_REVISION:
            return
        # A local import: alembic takes a third of a second to load and is rarely needed.
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError:
            raise LedgerError("the ledger was written by a newer version: upgrade kyc-pipeline") from None
