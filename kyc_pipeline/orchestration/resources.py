"""What the assets work with: the settings, and from them the lake, the ledger and the pseudonyms.

One resource, so that a test or the command line replaces one thing. Everything behind it is opened when it
is used: a code location must load without a ledger, a lake or a credential.
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
class Pipeline:
    """The Dagster resource `pipeline`."""

    settings: Settings
    progress: Callable[[Progress], None] | None = None
    """Told of the paid calls as they are made; without it the assets log them from time to time."""
    budget: CallBudget | None = None
    """Calls that several runs may make together; without it each run has a budget of its own."""
    timing: "Timing | None" = None
    """How long the engine waits between looks and retries, where it is not what it is in real use."""
    stop: StopFlag = field(default_factory=StopFlag)
    """Asks the paid calls to stop; the command line sets it on SIGINT and SIGTERM."""

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
