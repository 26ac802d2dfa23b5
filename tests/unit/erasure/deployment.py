"""A whole pipeline without Dagster, from which tests erase a person; and a search for remaining traces."""

import contextlib
import itertools
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import text

from kyc_pipeline.erasure.find import Findings, find
from kyc_pipeline.erasure.ledger_store import LedgerErasure
from kyc_pipeline.erasure.remove import erase
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.ingest.labels import LabelsSummary, ingest_labels
from kyc_pipeline.ingest.manifests import IngestSummary, ingest_partition
from kyc_pipeline.ingest.owners import Owners
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import ALL_TABLES
from kyc_pipeline.ledger.audit import AuditTrail, Author
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import acquire_lease, hold, release_lease
from kyc_pipeline.ledger.offload import offload
from kyc_pipeline.privacy.erased import ErasedSubjects
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.dispatcher import Timing
from kyc_pipeline.verify.engine import verify_partition
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import VerifySummary
from tests.unit.verify.world import settings_of

KEY = "k" * 32
LEDGER_TABLES = ("owners", "submissions", "attempts", "decisions", "erasures", "leases")
QUICK = Timing(look_ups=(0.0,), back_off=0.01, back_off_cap=0.02, breaker_waits=(0.05,), ledger_patience=2.0)


@dataclass
class Deployment:
    """Everything under `root`; `server` is the simulator's URL."""

    root: Path
    server: str
    ledger_url: str = ""
    lake_url: str = ""
    key: str = KEY

    @property
    def settings(self) -> Settings:
        values: dict[str, Any] = {
            "deepxl_base_url": self.server,
            "deepxl_api_token": "test-token",
            "deepxl_requests_per_second": 0,
            "kyc_landing": self.root / "landing",
            "kyc_lake": self.lake_url or str(self.root / "lake"),
            "kyc_ledger_url": self.ledger_url or f"sqlite:///{self.root / 'ledger.sqlite'}",
        }
        return settings_of(**values)

    @property
    def lake(self) -> Lake:
        return Lake(self.settings.kyc_lake)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.kyc_ledger_url)

    @property
    def stores(self) -> Stores:
        return Stores.of(self.settings, self.ledger, Pseudonymizer(self.key))

    def ingest(self, date: str) -> IngestSummary:
        tombstones = LedgerErasure(self.ledger).tombstones()
        erased = ErasedSubjects(tombstones, Pseudonymizer(self.key)) if tombstones else None
        with hold(self.ledger, date, f"ingest-{date}") as held:
            return ingest_partition(
                landing=self.settings.kyc_landing,
                lake=self.lake,
                date=date,
                erased=erased,
                owners=Owners(self.lake, self.ledger, held),
            )

    def ingest_labels(self) -> LabelsSummary:
        tombstones = LedgerErasure(self.ledger).tombstones()
        erased = ErasedSubjects(tombstones, Pseudonymizer(self.key)) if tombstones else None
        return ingest_labels(landing=self.settings.kyc_landing, lake=self.lake, erased=erased)

    def verify(self, date: str) -> VerifySummary:
        summary = verify_partition(
            settings=self.settings,
            lake=self.lake,
            ledger=self.ledger,
            date=date,
            run_id="run-1",
            stop=StopFlag(),
            timing=QUICK,
        )
        assert summary.error is None
        return summary

    def run(self, *dates: str) -> Counter[str]:
        """Ingests, verifies and flattens; returns the number of calls by day."""
        calls: Counter[str] = Counter()
        for date in dates:
            self.ingest(date)
            calls[date] = self.verify(date).calls
            flatten_partition(self.lake, date, Pseudonymizer(self.key), self.settings.kyc_clear_tags)
        return calls

    def offload(self, *dates: str) -> int:
        """Moves the responses of these days out of the ledger; returns how many."""
        trail = AuditTrail(self.ledger, self.lake, Author("somebody"), lambda: Pseudonymizer(self.key))
        moved = 0
        for date in dates:
            with hold(self.ledger, date, "maintenance") as held:
                moved += offload(self.lake, self.ledger, held.lease, trail).moved
        return moved

    def find(self, name: str, value: str, *, with_responses: bool = False) -> Findings:
        return find(self.stores, name, value, with_responses=with_responses)

    def erase(
        self,
        name: str,
        value: str,
        *,
        delete_documents: bool = False,
        progress: Callable[[str], None] = lambda step: None,
    ) -> Findings:
        """Runs a complete erasure; returns what was found."""
        stores = self.stores
        found = find(stores, name, value)
        erased = erase(stores, found, delete_documents=delete_documents, progress=progress)
        stores.ledger.finish(erased.tombstones)
        return found

    # --- what is there --------------------------------------------------------------------------------

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Every row of the lake, by table."""
        return {
            table.name: [
                {"date": date, **row}
                for date in self.lake.dates(table)
                for row in self.lake.read(table, date).to_pylist()
            ]
            for table in ALL_TABLES
        }

    def ledger_rows(self) -> dict[str, list[dict[str, Any]]]:
        """Every row of the ledger, by table."""
        with self.ledger.read() as connection:
            return {
                name: [dict(row) for row in connection.execute(text(f"SELECT * FROM {name}")).mappings()]
                for name in LEDGER_TABLES
            }

    def places_with(self, mark: str) -> list[str]:
        """Where `mark` occurs: in decoded values, and in the bytes of every file."""
        found = [name for name, rows in self.rows().items() if mark in str(rows)]
        found += [f"ledger {name}" for name, rows in self.ledger_rows().items() if mark in str(rows)]
        for folder, _, names in os.walk(self.lake.root):
            for name in names:
                path = Path(folder, name)
                if mark.encode() in path.read_bytes() or mark in str(path):
                    found.append(str(path.relative_to(self.root)))
                if name.endswith(".parquet") and mark in str(pq.read_metadata(path).metadata):
                    found.append(f"footer of {path.relative_to(self.root)}")
        # The ledger's connections stay open: a WAL that is not truncated would keep the bytes.
        for path in self.root.glob("ledger.sqlite*"):
            if mark.encode() in path.read_bytes():
                found.append(path.name)
        return found

    @contextlib.contextmanager
    def held_by_another_run(self, date: str) -> Iterator[None]:
        """Holds the lease of a day, as another run."""
        with Ledger(self.settings.kyc_ledger_url) as ledger:
            lease = acquire_lease(ledger, date, "run-of-somebody-else")
            yield
            release_lease(ledger, lease)


def erase_and_die(root: str, server: str, name: str, value: str, step: int) -> None:
    """Erases in this process, which kills itself at its `step`-th step."""
    seen = 0

    def progress(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)

    deployment = Deployment(Path(root), server)
    deployment.erase(name, value, progress=progress)
    deployment.ledger.close()


def killed_erasures(
    deployment: Deployment, processes: ForkServerContext, name: str, value: str
) -> Iterator[Deployment]:
    """Copies of the deployment, each with an erasure of the person that was killed at one step more."""
    deployment.ledger.close()
    for step in itertools.count(1):
        root = deployment.root.with_name(f"{deployment.root.name}-killed-{step}")
        killed = Deployment(root, deployment.server)
        shutil.copytree(deployment.root, killed.root)
        arguments = (str(killed.root), deployment.server, name, value, step)
        child = processes.Process(target=erase_and_die, args=arguments)
        child.start()
        child.join()
        if child.exitcode == 0:
            return
        assert child.exitcode == -signal.SIGKILL
        yield killed
        killed.ledger.close()
