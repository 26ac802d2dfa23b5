"""The process of one shard: `python -m kyc_pipeline.verify.shard_process PARENT CONNECTION`.

It claims and sends under the lease of its parent, the run, which alone takes and releases it. It starts with
SIGINT and SIGTERM blocked, and does what the run tells it. It ends with the run: if the run is killed, the
kernel kills it too (Linux), or it notices that the connection is closed.
"""

import asyncio
import contextlib
import copy
import ctypes
import dataclasses
import logging
import os
import pickle
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Final

from kyc_pipeline.deepxl.client import DeepXLClient
from kyc_pipeline.errors import KycError, plain_line
from kyc_pipeline.ledger.day_budget import DayBudget
from kyc_pipeline.ledger.leases import share
from kyc_pipeline.verify.budget import CallBudget, LentBudget
from kyc_pipeline.verify.calling import calling
from kyc_pipeline.verify.control import RunControl
from kyc_pipeline.verify.messages import Note, Report, Task
from kyc_pipeline.verify.partition import work
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import Stopped, Tally

_PR_SET_PDEATHSIG: Final = 1
_REPORT_SECONDS: Final = 0.5


def main(parent: int, connection: Connection) -> None:
    """Settles the shard that the parent sends. The last message to it is a last report."""
    with contextlib.suppress(AttributeError):  # other systems have no such call
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    process = _ShardProcess(connection, parent)
    logging.basicConfig(handlers=[process], level=logging.WARNING)
    process.run()
    # Everything is in the ledger, whatever a thread still waits for, such as a dead network share.
    os._exit(0)


class _ShardProcess(logging.Handler):
    """Settles the shard, and sends reports and log records to the run."""

    def __init__(self, connection: Connection, parent: int) -> None:
        super().__init__()
        self._connection = connection
        self._parent = parent
        self._sending = threading.Lock()
        self._stop = StopFlag()
        self._tally = Tally()

    def run(self) -> None:
        """Receives the task and settles it."""
        try:
            task: Task = self._connection.recv()
            threading.Thread(target=self._obey, daemon=True).start()
            report = asyncio.run(self._settle(task))
        except Exception as error:
            report = self._report(Stopped.ERROR, error)
        self._send(dataclasses.replace(report, is_last=True))

    def emit(self, record: logging.LogRecord) -> None:
        """Sends the text of `record`, without an error's traceback, which may quote data."""
        self._send(Note(record.name, record.levelno, record.getMessage()))

    def _obey(self) -> None:
        """Stops as the run says, and if it has gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                if self._connection.recv():
                    self._stop.now()
                else:
                    self._stop.drain()
        self._stop.drain()

    def _send(self, message: Report | Note) -> None:
        with self._sending, contextlib.suppress(OSError):  # if the run has gone, nobody needs it
            self._connection.send(message)

    def _report(self, reason: Stopped, error: Exception | None, generation: int = 0) -> Report:
        return Report(copy.copy(self._tally), reason, None if error is None else _portable(error), generation)

    async def _settle(self, task: Task) -> Report:
        settings, control = task.settings, RunControl(self._stop)
        budget = CallBudget() if task.budget is None else LentBudget(task.budget)
        with (
            task.ledger as ledger,
            control.watching(),
            share(ledger, task.lease, self._parent, self._stop.drain) as held,
        ):

            def report() -> Report:
                return self._report(control.reason, control.error, ledger.generation)

            async def report_regularly() -> None:
                while not control.ending:
                    await control.sleep(_REPORT_SECONDS)
                    self._send(report())

            reporting = asyncio.create_task(report_regularly())
            async with (
                DeepXLClient.of(settings) as client,
                calling(
                    held,
                    settings=settings,
                    lake=task.lake,
                    client=client,
                    control=control,
                    budget=budget,
                    day_budget=DayBudget(settings.deepxl_max_calls_per_day),
                    tally=self._tally,
                    timing=task.timing,
                    is_trusted=task.is_trusted,
                ) as calls,
            ):
                await calls.dispatcher.run(
                    work(task.lake, ledger, task.lease.partition_date, settings.deepxl_uncertain, task.shard)
                )
            reporting.cancel()
            return report()


def _portable(error: Exception) -> Exception:
    """The error; one with its line if it cannot be sent, or if its message may quote data."""
    if isinstance(error, KycError):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))  # noqa: S301
            return error
    return KycError(plain_line(error))


if __name__ == "__main__":
    main(int(sys.argv[1]), Connection(int(sys.argv[2])))
