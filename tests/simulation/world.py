"""One simulation: runs, an operator and DeepXL over one lake and one ledger, from one seed.

`simulate` draws a world from the seed: submissions, settings, which faults happen and how often, how many
runs there are, when they start, crash or freeze. Then the faults stop, and the world must come to order. It
raises :class:`Violation`, whose text has the seed and the log.
"""

import asyncio
import contextlib
import dataclasses
import functools
import gc
import hashlib
import itertools
import math
import os
import random
import secrets
import select
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, ClassVar, cast

import aiohappyeyeballs
import aiohttp.connector
import duckdb
import pyarrow as pa
from pydantic import SecretStr
from sqlalchemy import Engine

from kyc_pipeline import quiet_duckdb
from kyc_pipeline.deepxl import tracing
from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest import manifests, state
from kyc_pipeline.ingest.manifests import ingest_partition, is_ingested
from kyc_pipeline.ingest.owners import Owners
from kyc_pipeline.ingest.state import ingest_order
from kyc_pipeline.lake.storage import Lake, PartitionMissing
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS, Table
from kyc_pipeline.ledger import locks, sqlite
from kyc_pipeline.ledger import process as process_identity
from kyc_pipeline.ledger.database import Ledger, LedgerError
from kyc_pipeline.ledger.decisions import list_held, resolve_held
from kyc_pipeline.ledger.leases import hold
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.engine import verify_partition
from kyc_pipeline.verify.planning import PartitionPlan, plan_partitions
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import VerifySummary
from tests.simulation import kernel as simulated
from tests.simulation import network
from tests.simulation.deliveries import DOCUMENTS, Deliveries
from tests.simulation.kernel import Kernel, Process, Stuck
from tests.simulation.shards import replace_processes
from tests.simulation.vendor import BASE_URL, SHARE_OF_MOVES, SIZES, Fault, Handover, Vendor

DAYS = ("2024-09-01", "2024-09-02")
"""Without moves between days, there is only the first."""
LEASE_SECONDS = 60.0
_INGESTED = (SUBMISSIONS, REJECTED_SUBMISSIONS)


class Violation(AssertionError):
    """An invariant does not hold in the simulation of one seed."""


class _Ledger(Ledger):
    """The real ledger. Around each transaction others may run; some fail, before or after the commit."""

    engine: ClassVar[Engine | None] = None
    """Shared by all processes and worlds: each would compile the same statements again."""

    def __init__(self, url: str, world: "World") -> None:
        super().__init__(url, lease_seconds=LEASE_SECONDS)
        self._world = world

    def __reduce__(self) -> tuple[object, ...]:
        return _new_ledger, ()

    def exists(self) -> bool:
        """It is a copy of one that was created and migrated."""
        return True

    def _prepare(self, engine: Engine) -> None:
        """Nothing is left to do."""

    @contextlib.contextmanager
    def write(self) -> Iterator[Any]:
        self._world.kernel.preempt()
        fails = self._world.happens(Fault.LEDGER_FAILS)
        if fails and self._world.rng.random() < 0.7:
            raise LedgerError("simulated: the disk is full")
        with super().write() as connection:
            yield connection
        if fails:
            raise LedgerError("simulated: the connection was lost during the commit")
        self._world.kernel.preempt()

    def _create_engine(self) -> Engine:
        if _Ledger.engine is None:
            _Ledger.engine = super()._create_engine()
        assert self.file is not None
        self._file_id = sqlite.file_id(self.file)
        return _Ledger.engine

    def _configure_sqlite(self, connection: sqlite3.Connection, _record: Any) -> None:
        sqlite.configure(connection)  # for all: the engine remembers no world's file

    def close(self) -> None:
        """Leaves the connections to the other processes."""

    @contextlib.contextmanager
    def read(self) -> Iterator[Any]:
        self._world.kernel.check_alive()
        with super().read() as connection:
            yield connection


class _Lake(Lake):
    """A lake in memory. Around each replacement others may run, and the process may crash.

    Where days are ingested, their tables are files, which DuckDB reads.
    """

    def __init__(self, world: "World") -> None:
        super().__init__(str(world.root / "lake"))  # for its identity
        self._world = world
        self._partitions: dict[tuple[str, str], pa.Table] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return _lake, ()

    @contextlib.contextmanager
    def writer(
        self,
        table: Table,
        date: str,
        metadata: Mapping[str, str] | None = None,
        *,
        keep_identical: bool = False,
        confirm: Callable[[], None] = lambda: None,
    ) -> Iterator[Any]:
        """Replaces a partition if the block succeeds."""
        self._world.kernel.preempt()
        if self._is_on_disk(table):
            with super().writer(
                table, date, metadata, keep_identical=keep_identical, confirm=confirm
            ) as file:
                yield file
                self._world.kernel.preempt()
            self._world.kernel.preempt()
            return
        draft = _Draft(table, dict(metadata or {}))
        yield draft
        self._world.kernel.preempt()
        confirm()
        self._partitions[table.name, date] = draft.table()
        self._world.kernel.preempt()

    def _is_on_disk(self, table: Table) -> bool:
        return table in _INGESTED and self._world.deliveries is not None

    def exists(self, table: Table, date: str) -> bool:
        """Whether the partition has been written."""
        if self._is_on_disk(table):
            return super().exists(table, date)
        return (table.name, date) in self._partitions

    def dates(self, table: Table) -> list[str]:
        """The dates that have been written."""
        if self._is_on_disk(table):
            return super().dates(table)
        return sorted(date for name, date in self._partitions if name == table.name)

    def read(self, table: Table, date: str, columns: list[str] | None = None) -> pa.Table:
        """The partition's rows."""
        if self._is_on_disk(table):
            return super().read(table, date, columns)
        if not self.exists(table, date):
            raise PartitionMissing(f"{table.name} {date}")
        found = self._partitions[table.name, date]
        return found.select(columns) if columns else found

    def batches(
        self, table: Table, date: str, columns: list[str] | None = None, batch_size: int = 4096
    ) -> Iterator[pa.RecordBatch]:
        """The partition's rows in batches."""
        yield from self.read(table, date, columns).to_batches(max_chunksize=batch_size)

    def row_count(self, table: Table, date: str) -> int:
        """How many rows the partition has."""
        return self.read(table, date).num_rows

    def metadata(self, table: Table, date: str) -> dict[str, str]:
        """What the writer added."""
        if self._is_on_disk(table):
            return super().metadata(table, date)
        return {k.decode(): v.decode() for k, v in (self.read(table, date).schema.metadata or {}).items()}


def _world() -> "World":
    world: World = Kernel.current_kernel.world  # type: ignore[attr-defined]
    return world


def _new_ledger() -> Ledger:
    return _world().new_ledger()


def _lake() -> _Lake:
    return _world().lake


class _Draft:
    """Takes the place of the lake's `PartitionWriter`."""

    def __init__(self, table: Table, metadata: dict[str, str]) -> None:
        self._schema, self._metadata, self._rows = table.schema, metadata, []  # type: ignore[var-annotated]

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Adds rows."""
        self._rows += rows

    def add_metadata(self, metadata: Mapping[str, str]) -> None:
        """Adds to the metadata."""
        self._metadata.update(metadata)

    @property
    def rows(self) -> int:
        """Rows written."""
        return len(self._rows)

    def table(self) -> pa.Table:
        """The partition."""
        return pa.Table.from_pylist(self._rows, schema=self._schema.with_metadata(self._metadata))


@functools.cache
def _templates() -> tuple[Path, dict[str, Any]]:
    """A folder with documents and an empty ledger, and what every submission has in common; made once."""
    root = Path(tempfile.mkdtemp(prefix="kyc-simulation-", dir=_memory()))
    # Unlike `atexit`, it works in the processes of a pool too.
    Finalize(None, shutil.rmtree, (root,), {"ignore_errors": True}, exitpriority=1)
    documents = root / "landing" / "documents"
    documents.mkdir(parents=True)
    row: dict[str, Any] = {
        "submitted_at": None,
        "tags": [("companyId", "COMP-001")],
        "manifest": "m.csv",
    }
    for name, size in zip(("id", "selfie"), SIZES, strict=True):
        content = DOCUMENTS[name].ljust(size, b"\1")
        (documents / name).write_bytes(content)
        row |= {
            f"{name}_file": name,
            f"{name}_sha256": hashlib.sha256(content).hexdigest(),
            f"{name}_size": len(content),
            f"{name}_content_type": "image/jpeg",
        }
    with Ledger(f"sqlite:///{root}/ledger.sqlite") as ledger, ledger.write():
        pass
    return root, row


@functools.cache
def _settings() -> Settings:
    """What all worlds have in common: to validate settings takes a twentieth of a simulation."""
    return Settings(_env_file=None, deepxl_base_url=BASE_URL, deepxl_api_token="t", deepxl_timeout_seconds=30)


def ids_of(count: int) -> list[str]:
    """The ids of that many submissions."""
    return [f"s-{number}" for number in range(1, count + 1)]


def _memory() -> str | None:
    """A folder in memory, if the machine has one: the simulation does not test the disk's durability."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclasses.dataclass
class Run:
    """One run of the engine, in a process of its own."""

    name: str
    process: Process | None = None
    summaries: list[VerifySummary] = dataclasses.field(default_factory=list)
    error: BaseException | None = None
    is_over: bool = False
    ledger: Ledger | None = None

    @property
    def calls(self) -> int:
        """Over all days."""
        return sum(summary.calls for summary in self.summaries)

    @property
    def adopted(self) -> int:
        """Over all days."""
        return sum(summary.adopted for summary in self.summaries)


def _are_over(runs: Iterable[Run]) -> bool:
    return all(run.is_over for run in runs)


class World:
    """The world of one seed."""

    def __init__(self, seed: int, faults: frozenset[Fault], root: Path) -> None:
        self.seed, self.root = seed, root
        self.rng = rng = random.Random(seed)
        self.kernel = Kernel(rng)
        # Few kinds of faults at a time, each often: rare combinations would hardly occur otherwise.
        usual = max(0.3, 2 / len(faults))
        share = {Fault.MOVES: SHARE_OF_MOVES} if len(faults) > 2 else {}
        self.faults = frozenset(
            fault for fault in sorted(faults) if rng.random() < usual * share.get(fault, 1.0)
        )
        self.rate = rng.choice([0.1, 0.3, 0.6])
        self.ids = ids_of(rng.randint(1, 6))
        refused = frozenset(key for key in self.ids if rng.random() < 0.1)
        self.vendor = Vendor(rng, self.faults, self.rate, refused)
        self.refused = refused
        if Fault.FOREIGN_RECORD in self.faults:
            self.vendor.add_foreign_record(rng.choice(self.ids))
        templates, row = _templates()
        self.ledger_file = root / "ledger.sqlite"
        shutil.copyfile(templates / "ledger.sqlite", self.ledger_file)
        self._observer = sqlite3.connect(self.ledger_file, isolation_level=None)
        self.landing = templates / "landing"
        self.deliveries: Deliveries | None = None
        self.days: tuple[str, ...] = DAYS[:1]
        self.lake = _Lake(self)
        if Fault.MOVES in self.faults:
            self.days = DAYS
            self.landing = root / "landing"
            self.deliveries = Deliveries(rng, self.landing / "manifests", self.ids, DAYS)
            (self.landing / "documents").symlink_to(templates / "landing" / "documents")
        else:
            rows = [
                row | {"submission_id": key, "content_sha256": f"{number:064x}", "manifest_row": number}
                for number, key in enumerate(self.ids, 1)
            ]
            self.lake.write(SUBMISSIONS, DAYS[0], rows)
        self.settings = _settings().model_copy(
            update={
                "deepxl_requests_per_second": rng.choice([0, 0, 5]),
                "deepxl_max_concurrency": rng.choice([1, 2, 4]),
                # Drawn apart, so that the seeds of older worlds mean the same.
                "kyc_shards": random.Random(f"shards {seed}").choice([1, 1, 1, 2, 3]),
                "deepxl_max_attempts": rng.choice([1, 2, 5]),
                "deepxl_uncertain": "retry" if rng.random() < 0.25 else "hold",
                "kyc_landing": self.landing,
                "kyc_lake": self.lake.root,
                "kyc_ledger_url": SecretStr(f"sqlite:///{self.ledger_file}"),
            }
        )
        self.runs: list[Run] = []
        self.violations: list[str] = []
        """What was seen in the midst of a run, where production code would catch an exception."""
        self.given_up: set[str] = set()
        """The submissions that an operator gave up during the storm."""
        self.granted: list[str] = []
        """One entry for each operator's decision `retry`."""
        self.kernel.log.append(
            f"seed {seed}: {len(self.ids)} submissions, {self.settings.deepxl_uncertain}, "
            f"{self.rate:.0%} of {', '.join(sorted(fault.name for fault in self.faults)) or 'no faults'}"
        )

    def happens(self, fault: Fault) -> bool:
        """Whether this fault happens now."""
        return fault in self.faults and self.rng.random() < self.rate / 5

    def new_ledger(self) -> Ledger:
        """A process's own connection to the ledger."""
        return _Ledger(self.settings.kyc_ledger_url.get_secret_value(), self)

    def start(self, *, machine: str = "machine", ingest: bool = True, verify: bool = True) -> Run:
        """Starts a run of all days in a new process.

        Without `ingest`, it ingests only the days that are due; without `verify`, it makes no calls.
        """
        run = Run(f"run-{len(self.runs) + 1}", ledger=self.new_ledger())
        self.runs.append(run)
        stop = StopFlag()

        def main() -> None:
            try:
                for day in self._days_to_ingest(everything=ingest):
                    self._work(run, self._ingest, day)
                for day in self.days if verify else ():
                    self._work(run, self._verify, day, stop)
            except Exception as error:
                run.error = error
                self.kernel.note(f"ends: {type(error).__name__}: {error}")
            run.is_over = True

        run.process = self.kernel.spawn(run.name, machine, main)
        self._plan_mishaps(run.process, stop)
        return run

    def _days_to_ingest(self, *, everything: bool) -> Iterator[str]:
        if self.deliveries is not None and everything:
            yield from ingest_order(self.days, self.is_outdated)
        elif self.deliveries is not None:
            for _ in self.days:  # the sensor asks again for a day that another outdated
                yield from filter(self.is_outdated, self.days)

    def _work(self, run: Run, step: Callable[..., None], day: str, *arguments: Any) -> None:
        """One step of one day. As in production, an error fails its day only."""
        try:
            step(run, day, *arguments)
        except KycError as error:
            run.error = error
            self.kernel.note(f"{day} fails: {type(error).__name__}: {error}")

    def plan(self, ledger: Ledger) -> list[PartitionPlan]:
        """What `kyc-pipeline plan` says."""
        if self.deliveries is None:
            return plan_partitions(self.lake, ledger, self.days, self.settings)
        from tests.simulation.pipeline import plan  # loads Dagster, which few worlds need

        return plan(self)

    def is_outdated(self, day: str) -> bool:
        """Whether the day must be ingested again."""
        return not is_ingested(self.landing, self.lake, day)

    def _ingest(self, run: Run, day: str) -> None:
        assert run.ledger is not None
        with hold(run.ledger, day, run.name) as held:
            summary = ingest_partition(
                landing=self.landing,
                lake=self.lake,
                date=day,
                owners=Owners(self.lake, run.ledger, held),
                confirm=held.check,
            )
        self.kernel.note(f"{day} is ingested: {summary.accepted} accepted, {dict(summary.rejected)}")

    def _verify(self, run: Run, day: str, stop: StopFlag) -> None:
        assert run.ledger is not None
        summary = verify_partition(
            settings=self.settings,
            lake=self.lake,
            ledger=run.ledger,
            date=day,
            run_id=run.name,
            stop=stop,
            progress=self._check_progress,
        )
        if summary.error is not None:
            raise summary.error
        run.summaries.append(summary)
        self.kernel.note(f"ends {day}: {summary}")

    def _check_progress(self, progress: Any) -> None:
        if progress.done > progress.total or progress.billable_calls > progress.calls:
            self.violations.append(f"progress cannot be true: {progress}")

    def _plan_mishaps(self, process: Process, stop: StopFlag) -> None:
        """What happens to a process, each before a step that the seed draws."""
        rng, kernel = self.rng, self.kernel

        def die() -> None:
            kernel.note(f"{process.name} is killed")
            kernel.kill(process)

        def step_clock() -> None:
            kernel.clock_step += rng.choice([-7200.0, -90.0, 90.0, 7200.0])
            kernel.note(f"the clock is stepped to {kernel.clock_step:+.0f} s")

        mishaps: dict[Fault, Callable[[], None]] = {
            Fault.CRASH: die,
            Fault.FREEZE: lambda: kernel.freeze(process, rng.choice([5.0, 40.0, 100.0, 300.0])),
            Fault.SLEEP: lambda: kernel.sleep_machine(rng.choice([20.0, 300.0])),
            Fault.STOP: stop.escalate,
            Fault.CLOCK_STEP: step_clock,
        }
        for fault, happens in mishaps.items():
            if fault in self.faults and rng.random() < 0.7:
                process.at_step[int(10 ** rng.uniform(0.3, 2.7))] = happens

    def plan_mishaps_of_shard(self, process: Process) -> None:
        """What happens to the process of a shard alone."""
        mishaps: dict[Fault, Callable[[], None]] = {
            Fault.CRASH: lambda: self.kernel.kill(process),
            Fault.FREEZE: lambda: self.kernel.freeze(process, self.rng.choice([5.0, 100.0])),
        }
        for fault, happens in mishaps.items():
            if fault in self.faults and self.rng.random() < 0.3:
                process.at_step[int(10 ** self.rng.uniform(0.3, 2.3))] = happens

    def execute(self, decide: Callable[[Ledger], None]) -> None:
        """Lets an operator do something, in a process of their own."""
        done: list[bool] = []

        def main() -> None:
            with self.new_ledger() as ledger, contextlib.suppress(KycError):
                decide(ledger)
            done.append(True)

        process = self.kernel.spawn("operator", "machine", main)
        self.kernel.run(lambda: bool(done), self.kernel.now + 3600)
        self.check_threads()
        del process

    def decide_held(self, decision: str, share: float = 1.0) -> None:
        """An operator decides about held submissions."""

        def decide(ledger: Ledger) -> None:
            for held in list_held(ledger):
                if self.rng.random() < share:
                    # Counted before it is made: it may take effect although the ledger reports an error.
                    self.granted += [held.submission_id] * (decision == "retry")
                    if decision == "abandon" and self.faults:
                        self.given_up.add(held.submission_id)
                    self.kernel.note(f"{held.submission_id} is decided: {decision}")
                    resolve_held(ledger, held.submission_id, decision, "operator")

        self.execute(decide)

    def wait(self, *runs: Run) -> None:
        """Until these runs have ended or died."""
        self.kernel.run(
            lambda: all(run.is_over or (run.process and run.process.is_dead) for run in runs),
            self.kernel.now + 20_000,
        )
        self.check_threads()

    def check_threads(self) -> None:
        """Raises what was seen, and what a thread raised that nobody expected."""
        if self.violations:
            raise Violation(self.violations[0])
        for thread in simulated.all_threads(self.kernel):
            if thread.error is not None:
                raise thread.error
        for run in self.runs:
            if run.error is not None and not isinstance(run.error, KycError):
                raise run.error

    # --- the course of events -------------------------------------------------------------------------

    def storm(self) -> None:
        """Runs start, disturb each other and end in all ways, while an operator decides."""
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            machines = self.rng.choices(["machine", "container"], k=self.rng.choice([1, 1, 2]))
            begun = [
                self.start(machine=machine, verify=self.deliveries is None or self.rng.random() < 0.5)
                for machine in machines
            ]
            if self.deliveries is not None:
                for _ in range(self.rng.choice([1, 1, 2])):
                    self.kernel.at(self.kernel.now + self.rng.uniform(0.0, 20.0), self._deliver)
            # Some start while others still run or are frozen.
            patience = self.rng.choice([2.0, 80.0, 80.0, 20_000.0])
            with contextlib.suppress(Stuck):
                self.kernel.run(functools.partial(_are_over, begun), self.kernel.now + patience)
            self.check_threads()
            if self.rng.random() < 0.4:
                self.decide_held(self.rng.choice(["retry", "retry", "abandon"]), share=0.5)

    def _deliver(self) -> None:
        if self.deliveries is not None and Fault.MOVES in self.faults:
            self.deliveries.change()

    def calm(self) -> None:
        """The faults stop; runs that live go on to their end, and leases and the history come to rest."""
        self.kernel.note("the faults stop")
        self.faults = self.vendor.faults = frozenset()
        for process in self.kernel.processes:
            process.at_step.clear()
        self.wait(*self.runs)
        self.kernel.clock_step = 0.0
        if self.deliveries is not None and self.rng.random() < 0.5:
            self.deliveries.change()
        end = self.kernel.now + 8000
        self.kernel.at(end, lambda: None)
        self.kernel.run(lambda: self.kernel.now >= end, end)

    def close(self) -> None:
        """Ends what is left of the processes."""
        for process in self.kernel.processes:
            self.kernel.kill(process)
        self._observer.close()
        if _Ledger.engine is not None:
            _Ledger.engine.dispose()

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows of the ledger, read beside the pipeline."""
        return self._observer.execute(sql, parameters).fetchall()


@contextlib.contextmanager
def simulation() -> Iterator[None]:
    """Puts all of the pipeline on simulated threads, clocks and network."""
    replaced: dict[Any, Any] = {
        time: simulated.clocks(),
        threading: simulated.Substitute(
            threading, Thread=simulated.Thread, Event=simulated.Event, Condition=simulated.Condition
        ),
        secrets: simulated.Substitute(
            secrets, token_hex=lambda size=16: f"{random.getrandbits(size * 8):0{size * 2}x}"
        ),
        select: simulated.Substitute(select, poll=network.Poll),
        datetime: simulated.Datetime,
    }
    undo: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    # A crash ends the spans' contexts in others, of which OpenTelemetry logs a traceback.
    replace(tracing, "_tracer", None)
    for name, module in sorted(sys.modules.items()):
        if name.startswith("kyc_pipeline."):
            for attribute, value in list(vars(module).items()):
                with contextlib.suppress(TypeError):
                    if value in replaced:
                        replace(module, attribute, replaced[value])

    def vendor() -> Vendor:
        return Kernel.current_kernel.vendor  # type: ignore[attr-defined,no-any-return]

    async def start_connection(*_: object, **__: object) -> Any:
        return await network.connect(vendor())

    replace(sys, "unraisablehook", lambda _: None)  # what the remains of killed processes raise
    replace(asyncio, "run", network.run)
    replace(aiohttp.connector, "monotonic", replaced[time].monotonic)
    replace(aiohappyeyeballs, "start_connection", start_connection)
    _replace_identity(replace)
    replace_processes(replace, _world)
    replace(tempfile, "tempdir", str(_templates()[0]))
    replace(locks, "POLL_SECONDS", 5.0)  # who waits for a stopped process would ask thousands of times
    replace(locks, "_SILENT_SECONDS", math.inf)
    replace(quiet_duckdb, "connect", _database())
    random_state, threshold = random.getstate(), gc.get_threshold()
    try:
        with warnings.catch_warnings():
            # What a killed process never awaited.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
            gc.collect()
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)
        random.setstate(random_state)
        gc.set_threshold(*threshold)


def _database() -> Callable[..., duckdb.DuckDBPyConnection]:
    """Takes the place of `quiet_duckdb.connect`: a schema of one database, since to start one takes long."""
    database, numbers = duckdb.connect(), itertools.count()

    def connect(**_: Any) -> duckdb.DuckDBPyConnection:
        schema = f"s{next(numbers)}"
        return database.cursor().execute(f"CREATE SCHEMA {schema}; SET schema = '{schema}'")

    return connect


def _replace_identity(replace: Callable[[Any, str, Any], None]) -> None:
    """Who a process is, and what another one does, is the kernel's to say."""

    def current() -> Process:
        thread = Kernel.current_kernel.current
        assert thread is not None
        return thread.process

    def state_and_start(pid: int) -> tuple[str, str]:
        for process in Kernel.current_kernel.processes:
            if process.pid == pid and process.is_running():
                return ("T" if process.frozen_until > Kernel.current_kernel.now else "R"), "1"
        return "", ""

    def kill(pid: int, _signal: int) -> None:
        if not state_and_start(pid)[1]:
            raise ProcessLookupError

    values = {
        # The boot, then the namespaces of pid and time.
        "_machine": lambda: f"boot/{current().machine}/time",
        "_start_time": lambda pid: state_and_start(pid)[1] or None,
        "_state_and_start": state_and_start,
        "_proc_is_ours": lambda: True,
        "os": simulated.Substitute(os, getpid=lambda: current().pid, kill=kill),
    }
    for name, value in values.items():
        if hasattr(process_identity, name):
            replace(process_identity, name, value)


def simulate(seed: int, faults: frozenset[Fault] = frozenset(Fault)) -> World:
    """Simulates one world, inside :func:`simulation`. Raises :class:`Violation`."""
    from tests.simulation import invariants

    root = _templates()[0] / "world"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    random.seed(seed)
    gc.disable()
    world = World(seed, faults, root)
    world.kernel.world = world  # type: ignore[attr-defined]
    world.kernel.vendor = world.vendor  # type: ignore[attr-defined]
    world.vendor.on_handover = lambda handover: world.violations.extend(
        invariants.wrong_with(world, handover)
    )
    try:
        world.storm()
        world.calm()
        invariants.check_end(world)
    except Exception as error:
        raise Violation(
            f"{type(error).__name__}: {error}\n"
            + "\n".join(world.kernel.log)
            + f"\nreplay with: make simulate SEED={seed}"
        ) from error
    finally:
        world.close()
        for cache in (state._read, state._owned_at, cast("Any", manifests._cached_sha256)):
            cache.cache_clear()  # they would keep all worlds
        gc.enable()
    return world


__all__ = ["Handover", "Violation", "World", "simulate", "simulation"]
