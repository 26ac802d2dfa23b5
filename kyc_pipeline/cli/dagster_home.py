"""Dagster's home, where it records runs: the folder, its `dagster.yaml`, and the instance in it.

Kept apart from what runs days, so that a command that only shows or serves something loads no definitions.
"""

import contextlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

import kyc_pipeline
from kyc_pipeline.errors import KycError, UsageError, missing_extra

DEFAULT_HOME = Path("dagster_home")
INSTANCE = "dagster.yaml"
EXTRAS = {
    "dagster_postgres": "postgres",
    "dagster_aws": "s3",
    "dagster_k8s": "k8s",
    "dagster_celery": "celery",
}
"""The extra with each of Dagster's packages that `dagster.yaml` may name."""
CELERY_LAUNCHER = "kyc_pipeline.orchestration.celery_launcher"
"""The project's own class that `dagster.yaml` may name."""
_ALREADY_EXISTS = {"23505", "42P07", "42710"}
"""PostgreSQL's SQLSTATEs unique_violation, duplicate_table and duplicate_object."""
_RETRIES = 9
"""Each follows something that another process created. Dagster creates its database in far fewer parts."""
_DATABASE_PACKAGES = {"sqlalchemy", "dagster_postgres"}
"""The packages whose errors say that a database cannot be used."""


def make_home(folder: Path) -> None:
    """Makes `folder` a Dagster home with the project's `dagster.yaml`; keeps an existing one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), (folder / INSTANCE).open("x", encoding="utf-8") as file:
        file.write(_instance_file().read_text(encoding="utf-8"))


def _instance_file() -> Path:
    """The project's `dagster.yaml`: in the installed package, or beside it in a checkout."""
    package = Path(kyc_pipeline.__file__).parent
    installed = package / INSTANCE
    return installed if installed.is_file() else package.parent / DEFAULT_HOME / INSTANCE


def open_instance() -> dg.DagsterInstance:
    """The instance at `DAGSTER_HOME`; by default at `./dagster_home`, which is created on first use."""
    if home := os.environ.get("DAGSTER_HOME"):
        if not Path(home).is_dir():
            raise UsageError("DAGSTER_HOME is not a folder: create it, or unset it to use dagster_home/")
    else:
        make_home(DEFAULT_HOME)
    folder = os.environ["DAGSTER_HOME"] = str(Path(home or DEFAULT_HOME).resolve())
    if "?" in folder:  # which begins the options in Dagster's database URLs
        raise UsageError(f"DAGSTER_HOME: {folder} has a ? in its path: choose another folder")
    if os.environ.get("DAGSTER_POSTGRES_URL", "").startswith("postgresql+psycopg:"):
        raise UsageError("DAGSTER_POSTGRES_URL: write postgresql:// (postgresql+psycopg:// is the ledger's)")
    logging.getLogger().addFilter(_without_url)
    try:
        instance = _open()
    except KycError:
        raise
    except Exception as error:
        # Dagster's class for it is private; its message names the module.
        _require_extra(str(error).partition("import module ")[2].partition(" ")[0])
        raise UsageError(
            f"DAGSTER_HOME: {folder}/{INSTANCE} is not valid ({_fault(error)}): correct it; "
            "`dagster instance info` shows more"
        ) from error
    reference = instance.get_ref()
    for data in (reference.compute_logs_data, reference.run_launcher_data):
        _require_extra(data.module_name if data else "")
    return instance


def _open() -> dg.DagsterInstance:
    """The instance. Tries again if another process has just created the same tables in PostgreSQL.

    Services start together, and Dagster itself tries again after some of these errors only. Raises
    :class:`HomeUnusable`.
    """
    for _ in range(_RETRIES):
        try:
            return _opened()
        except HomeUnusable as error:
            code = getattr(getattr(error.__cause__, "orig", None), "pgcode", None)
            if code not in _ALREADY_EXISTS:
                raise
    return _opened()


def _opened() -> dg.DagsterInstance:
    with usable_home():
        return dg.DagsterInstance.get()


def _without_url(record: logging.LogRecord) -> bool:
    """Replaces what Dagster logs when its database is away: the driver quotes parts of the URL."""
    if isinstance(record.msg, str) and record.msg.startswith("Retrying failed database connection"):
        record.msg, record.args = "Dagster's database cannot be reached: trying again", ()
    return True


def _fault(error: Exception) -> str:
    """What is wrong with `dagster.yaml`, without its values, which may be secret."""
    if not isinstance(error, dg.DagsterInvalidConfigError) or not error.errors:
        mark = getattr(error, "problem_mark", None)  # of YAML
        return type(error).__name__ + ("" if mark is None else f" in line {mark.line + 1}")
    first = error.errors[0]
    if name := re.search(r'environment variable "(\w+)" which is not set', first.message):
        return f"{name[1]} is not set"
    levels = first.stack.levels
    return f"at {': '.join(levels)}" if levels else "at the top level"


def _require_extra(module: str) -> None:
    """Raises :class:`UsageError` if `module` belongs to an extra that is not installed."""
    package = "dagster_celery" if module == CELERY_LAUNCHER else module.partition(".")[0]
    if package in EXTRAS and importlib.util.find_spec(package) is None:
        raise missing_extra(f"{os.environ['DAGSTER_HOME']}/{INSTANCE}", EXTRAS[package])


class HomeUnusable(KycError):
    """Dagster cannot read or write its home or its database, perhaps because the disk is full."""


@contextlib.contextmanager
def usable_home() -> Iterator[None]:
    """Turns Dagster's errors about its files and its database into one line, and restores standard output
    and error.

    While a step runs, Dagster redirects both to files in its home; on a full disk it leaves them there.
    """
    saved = [(number, os.dup(number)) for number in (1, 2)]
    try:
        yield
    except Exception as error:
        # By name: only the ledger may import SQLAlchemy, and Dagster's package for PostgreSQL is optional.
        if (
            not isinstance(error, OSError)
            and type(error).__module__.partition(".")[0] not in _DATABASE_PACKAGES
        ):
            raise
        raise HomeUnusable(
            f"DAGSTER_HOME: {os.environ.get('DAGSTER_HOME')} cannot be used ({type(error).__name__}): "
            f"free disk space there, check the database if its {INSTANCE} names one, and run the command "
            "again; every paid call is in the ledger"
        ) from error
    finally:
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
