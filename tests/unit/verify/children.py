"""Functions that tests run in separate processes, to kill or starve them."""

import dataclasses
import os
import resource
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from kyc_pipeline.deepxl.multipart import MultipartBody
from kyc_pipeline.errors import KycError
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import PartitionBusy
from kyc_pipeline.ledger.times import Clock, now, since_boot
from kyc_pipeline.verify import shard
from kyc_pipeline.verify.budget import LentBudget
from kyc_pipeline.verify.signals import StopFlag, stop_on_signals
from tests.unit.verify.world import QUICK, World

BUSY = 75
DAY = 86_400_000_000
"""In microseconds."""
IMPATIENT = dataclasses.replace(QUICK, ledger_patience=0.0)


def verify(root: str, server: str, ledger_url: str, options: dict[str, Any], date: str, run_id: str) -> None:
    """Runs the engine over one partition."""
    World(Path(root), server, ledger_url, options).verify(date=date, run_id=run_id)


def verify_or_busy(*arguments: Any) -> None:
    """Runs the engine over one partition; exits with `BUSY` if another run holds it."""
    try:
        verify(*arguments)
    except PartitionBusy:
        sys.exit(BUSY)


def verify_until_signalled(root: str, server: str, options: dict[str, Any], tell: Connection) -> None:
    """Runs the engine as the command line does; sends each stop stage, then why the run stopped."""
    stop = StopFlag()
    world = World(Path(root), server, options=options)
    with stop_on_signals(stop), stop.watched(lambda: tell.send("now" if stop.immediate else "drain")):
        summary = world.verify(stop=stop)
    tell.send(summary.stopped.value)


def verify_and_stop_before_the_upload(root: str, server: str, ledger_url: str, tell: Connection) -> None:
    """Runs the engine, and stops this process (SIGSTOP) between the first claim and its upload.

    When it goes on, its clocks say that it was away for a day. Sends the error's line, or "done".
    """
    prepare = MultipartBody.prepare
    away = 0

    async def stop_then_prepare(body: MultipartBody) -> None:
        nonlocal away
        setattr(MultipartBody, "prepare", prepare)  # noqa: B010
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # at once, whatever other threads do
        away = DAY
        await prepare(body)

    setattr(MultipartBody, "prepare", stop_then_prepare)  # noqa: B010
    world = World(Path(root), server, ledger_url)
    clock = Clock(lambda: now() + away, lambda: since_boot() + away)
    world.ledger = Ledger(world.settings.kyc_ledger_url, clock=clock)
    tell.send(os.getpid())
    try:
        world.verify(run_id="sleeper")
    except KycError as error:
        tell.send(str(error))
    else:
        tell.send("done")


def verify_with_small_files(limit: int, root: str, server: str, ledger_url: str, tell: Connection) -> None:
    """Runs the engine with files limited to `limit` bytes; sends the error's line, or "done"."""
    world = World(Path(root), server, ledger_url)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        world.verify(timing=IMPATIENT)
    except KycError as error:
        tell.send(str(error))
    else:
        tell.send("done")
    os._exit(0)


def lock_ledger(url: str, pipe: Connection) -> None:
    """Connects, and after a message locks the ledger against other writers until the next one."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        connection.rollback()
        pipe.send("connected")
        pipe.recv()
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("LOCK TABLE submissions, leases IN EXCLUSIVE MODE")
        pipe.send("locked")
        pipe.recv()
        connection.rollback()
    engine.dispose()


def verify_in_shards(*arguments: Any) -> None:
    """Runs the engine over one partition, however small, in several processes."""
    for name in ("SUBMISSIONS_WORTH_A_PROCESS", "CALLS_WORTH_A_PROCESS"):
        setattr(shard, name, 1)
    verify(*arguments)


def take_all(parent: int, file: int) -> None:
    """Takes 100 calls from the budget that the process `parent` has lent."""
    with open(f"/proc/{parent}/fd/{file}", "r+b", buffering=0) as lent:
        budget = LentBudget(lent.fileno())
        if not all(budget.take() for _ in range(100)):
            sys.exit(1)
