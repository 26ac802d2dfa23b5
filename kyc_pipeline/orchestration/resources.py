"""The resources: `pipeline` (settings, lake, ledger, pseudonyms) and `controls` (what belongs to one run).

`pipeline` opens everything on use: a code location must load without a ledger, a lake or a credential.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from kyc_pipeline.erasure.ledger import LedgerErasure
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import hold
from kyc_pipeline.privacy.erased import ErasedSubjects
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer, load_pseudonymizer
from kyc_pipeline.settings import Settings
from kyc_pipeline.verify.budget import CallBudget
from kyc_pipeline.verify.signals import StopFlag
from kyc_pipeline.verify.summary import Progress

if TYPE_CHECKING:  # a code location loads without an HTTP client
    from kyc_pipeline.verify.dispatcher import Timing


@dataclass
class RunControls:
    """The Dagster resource `controls`: what belongs to one run and is no setting.

    Each run that Dagster launches makes its own; the command line passes one that its runs share.
    """

    budget: CallBudget | None = None
    """Calls that the runs may make together; without it, each run has the budget of the settings."""
    stop: StopFlag = field(default_factory=StopFlag)
    """Asks the paid calls to stop; the command line sets it on SIGINT and SIGTERM."""
    progress: Callable[[Progress], None] | None = None
    """Receives the progress of the paid calls; without it, the asset logs it from time to time."""
    timing: "Timing | None" = None
    """How long the engine waits between look-ups and retries, if not as in real use."""


@dataclass
class Pipeline:
    """The Dagster resource `pipeline`."""

    settings: Settings

    @property
    def lake(self) -> Lake:
        """The lake at `KYC_LAKE`."""
        return Lake(self.settings.kyc_lake)

    def open_ledger(self) -> Ledger:
        """The ledger at `KYC_LEDGER_URL`; the caller closes it."""
        return Ledger(self.settings.kyc_ledger_url)

    @contextlib.contextmanager
    def holding(self, day: str, run_id: str) -> Iterator[Callable[[], None]]:
        """Keeps the day from being verified, ingested or erased by another run meanwhile.

        The value raises where another run took the day over. Raises PartitionBusy with the holder's name.
        """
        with self.open_ledger() as ledger, hold(ledger, day, run_id) as held:
            yield held.check

    @cached_property
    def pseudonymizer(self) -> Pseudonymizer:
        """Pseudonyms under the settings' key, which is made on first use."""
        return load_pseudonymizer(self.settings)

    def erased_subjects(self, ledger: Ledger) -> ErasedSubjects | None:
        """Who was erased, as it is now; None where nobody was."""
        tombstones = LedgerErasure(ledger).tombstones()
        return ErasedSubjects(tombstones, self.pseudonymizer) if tombstones else None

    def erasure_state(self) -> frozenset[tuple[object, ...]]:
        """Something that differs where somebody was erased meanwhile: what was read before may show them."""
        with self.open_ledger() as ledger:
            return LedgerErasure(ledger).state()
