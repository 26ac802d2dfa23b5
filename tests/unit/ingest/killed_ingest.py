"""An ingest in a process that kills itself: before a write transaction of the ledger, or after a rename."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kyc_pipeline.ingest.manifests import ingest_partition
from kyc_pipeline.ingest.owners import Owners
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import hold


def ingest_and_die(landing: Path, root: str, url: str, day: str, step: int) -> None:
    """Ingests the day; kills this process at its `step`-th step, if it has so many."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)

    write, replace = Ledger.write, os.replace

    def counted_write(ledger: Ledger) -> Any:
        count()
        return write(ledger)

    def counted_replace(*paths: str) -> None:
        replace(*paths)
        count()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "write", counted_write)
        patch.setattr(os, "replace", counted_replace)
        lake = Lake(root)
        with Ledger(url) as ledger, hold(ledger, day, "killed") as held:
            ingest_partition(landing=landing, lake=lake, date=day, owners=Owners(lake, ledger, held))
