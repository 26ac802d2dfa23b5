"""The endings of a day, and how each shows: run, partition, check, metadata, alert and exit code.

`docs/operations.md` has the same tables, and a test produces each ending.
"""

from dataclasses import dataclass
from typing import Final, Literal

from kyc_pipeline.errors import FAILED, UNFINISHED
from kyc_pipeline.orchestration.alerts.model import Kind
from kyc_pipeline.verify.summary import Stopped


@dataclass(frozen=True, slots=True)
class Ending:
    """One ending of a day.

    `check` is the check that fails; `stopped`, in the metadata of `verification_responses`, why the calls
    ended early.
    """

    reason: str
    run: Literal["SUCCESS", "FAILURE"]
    partition: Literal["materialized", "failed"]
    check: str | None = None
    stopped: Stopped = Stopped.NONE
    alert: Kind | None = None
    exit_code: int = 0


_DONE: Final = ("SUCCESS", "materialized")
_FAILED_RUN: Final = ("FAILURE", "materialized")
_FAILED_DAY: Final = ("FAILURE", "failed", None, Stopped.NONE, Kind.RUN_FAILED, FAILED)

ENDINGS: Final = (
    Ending("all submissions are settled", *_DONE),
    Ending("rows are rejected", *_DONE, "few_rejections"),
    Ending("a file is not a manifest", *_DONE, "every_file_taken", alert=Kind.UNREAD),
    Ending("a response is quarantined", *_DONE, "none_uncertain_or_quarantined"),
    Ending("submissions failed, their attempts used up", *_DONE, "all_attempted", exit_code=UNFINISHED),
    Ending("the run's budget is used up", *_DONE, "all_attempted", Stopped.BUDGET, None, UNFINISHED),
    Ending("the day's budget is used up", *_DONE, "all_attempted", Stopped.DAY_BUDGET, None, UNFINISHED),
    Ending("a stop was requested", *_DONE, "all_attempted", Stopped.CANCELLED, None, UNFINISHED),
    Ending("submissions are held", *_FAILED_RUN, "needs_nobody", Stopped.NONE, Kind.HELD, UNFINISHED),
    Ending("the circuit is open", *_FAILED_RUN, "needs_nobody", Stopped.CIRCUIT_OPEN, Kind.OUTAGE, FAILED),
    Ending("access is denied", *_FAILED_RUN, "needs_nobody", Stopped.ACCESS_DENIED, Kind.RUN_FAILED, FAILED),
    Ending(
        "ten final responses of one kind in a row",
        *_FAILED_RUN,
        "needs_nobody",
        Stopped.ERROR,
        Kind.RUN_FAILED,
        FAILED,
    ),
    Ending(
        "one of the day's processes is killed",
        *_FAILED_RUN,
        "needs_nobody",
        Stopped.ERROR,
        Kind.RUN_FAILED,
        FAILED,
    ),
    Ending(
        "two submissions have the same record",
        *_FAILED_RUN,
        "verification_ids_unique",
        Stopped.NONE,
        Kind.CHECK_FAILED,
        FAILED,
    ),
    Ending("a manifest cannot be read", *_FAILED_DAY),
    Ending("another run has the day", *_FAILED_DAY),
    Ending("the ledger fails or is refused", *_FAILED_DAY),
    Ending("the lake cannot be written", *_FAILED_DAY),
)


@dataclass(frozen=True, slots=True)
class Interruption:
    """How a run shows that somebody else ended it while it made calls.

    The run reports no materialization and no checks of the days that it was working on, unless it stopped its
    calls itself, as a run of a cancelled backfill does. `log` is in the run's log.
    """

    how: str
    run: Literal["FAILURE", "CANCELED", "SUCCESS or CANCELED"]
    alert: Kind | None
    log: str
    then: str


_AGAIN: Final = "run the days again; `catch_up` does so for the days that it looks at"

KILLED: Final = Interruption(
    "the process of the run is killed",
    "FAILURE",
    Kind.RUN_FAILED,
    "was terminated by signal 9",
    "nothing: Dagster starts the run again, once; if that one fails too, run the days again",
)
TERMINATED: Final = Interruption('"Terminate" in the UI', "CANCELED", None, "terminated;", _AGAIN)
CANCELLED: Final = Interruption(
    '"Cancel backfill" in the UI', "SUCCESS or CANCELED", None, "was cancelled: no further call", _AGAIN
)
COMMAND_KILLED: Final = Interruption(
    "`kyc-pipeline backfill` is killed",
    "FAILURE",
    Kind.RUN_FAILED,
    "the command of this run was killed",
    "run the command again; it, or the sensor `killed_commands`, marks the old run as failed",
)
INTERRUPTIONS: Final = (KILLED, TERMINATED, CANCELLED, COMMAND_KILLED)
