"""What a run and the processes of its shards tell each other.

The run sends a task, then a boolean per stop request: whether to abandon the calls in flight too.
"""

from dataclasses import dataclass, field

from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.models import Lease
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.dispatcher import Timing
from kyc_pipeline.verify.shard import Shard
from kyc_pipeline.verify.summary import Stopped, Tally


@dataclass(frozen=True, slots=True)
class Task:
    """What a process gets to do. It has the credential, so it is sent through a pipe."""

    shard: Shard
    settings: Settings = field(repr=False)
    lake: Lake
    ledger: Ledger
    lease: Lease
    is_trusted: bool
    timing: Timing
    budget: int | None
    """Descriptor of the lent budget; None without a limit."""


@dataclass(frozen=True, slots=True)
class Report:
    """How far a process has come. The last one says why it stopped early, if it did."""

    tally: Tally
    reason: Stopped = Stopped.NONE
    error: Exception | None = None
    generation: int = 0
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A line of a process for the log of the run."""

    logger: str
    level: int
    text: str
