"""Dagster's home, where it records runs: the folder, its `dagster.yaml`, and the instance in it.

Kept apart from what runs days, so that a command that only shows or serves something loads no definitions.
"""

import contextlib
import importlib.util
import os
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
    try:
        with usable_home():
            instance = dg.DagsterInstance.get()
    except Exception as error:
        # Dagster's class for it is private; its message names the module.
        _require_extra(str(error).partition("import module ")[2].partition(" ")[0])
        raise
    reference = instance.get_ref()
    for data in (reference.compute_logs_data, reference.run_launcher_data):
        _require_extra(data.module_name if data else "")
    return instance


def _require_extra(module: str) -> None:
    """Raises :class:`UsageError` if `module` belongs to an extra that is not installed."""
    package = "dagster_celery" if module == CELERY_LAUNCHER else module.partition(".")[0]
    if package in EXTRAS and importlib.util.find_spec(package) is None:
        raise missing_extra(f"{os.environ['DAGSTER_HOME']}/{INSTANCE}", EXTRAS[package])


class HomeUnusable(KycError):
    """Dagster cannot read or write its home, perhaps because the disk is full."""


@contextlib.contextmanager
def usable_home() -> Iterator[None]:
    """Turns Dagster's errors about its files into one line, and restores standard output and error.

    While a step runs, Dagster redirects both to files in its home; on a full disk it leaves them there.
    """
    saved = [(number, os.dup(number)) for number in (1, 2)]
    try:
        yield
    except Exception as error:
        # By name, since only the ledger may import SQLAlchemy, whose errors Dagster does not wrap.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("sqlalchemy."):
            raise
        raise HomeUnusable(
            f"DAGSTER_HOME: {os.environ.get('DAGSTER_HOME')} cannot be used ({type(error).__name__}): "
            "free disk space there and run the same days again; every paid call is in the ledger"
        ) from error
    finally:
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
