"""What tests run in processes of their own, so that these can be killed or starved."""

import dataclasses
import os
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from world import QUICK, World

from kyc_pipeline.errors import KycError

IMPATIENT = dataclasses.replace(QUICK, ledger_patience=0.0)


def verify(root: str, server: str, ledger_url: str, options: dict[str, Any], date: str, run_id: str) -> None:
    """Runs the engine over one partition."""
    World(Path(root), server, ledger_url, options).verify(date=date, run_id=run_id)


def verify_with_small_files(limit: int, root: str, server: str, tell: Connection) -> None:
    """Runs the engine where no file may grow beyond `limit` bytes; tells the error's one line, or "done"."""
    world = World(Path(root), server)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        world.verify(timing=IMPATIENT)
    except KycError as error:
        tell.send(str(error))
    else:
        tell.send("done")
    os._exit(0)
