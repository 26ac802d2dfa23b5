"""The resource of the assets: the settings, and from them the lake, the ledger and the pseudonyms.

It is one resource, so that a test or the command line replaces one thing. Stores are opened when they are
used: a code location loads without a ledger, a lake or a credential.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from kyc_pipeline.erasure.ledger import LedgerErasure
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import hold
from kyc_pipeline.privacy.erased import ErasedSubjects
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer, load_pseudonymizer
from kyc_pipeline.settings import Settings


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
        """Holds the day's lease: no other run verifies, ingests or erases it meanwhile.

        Yields a function that raises if another run took the lease over. Raises
        :class:`~kyc_pipeline.ledger.leases.PartitionBusy` with the holder's name.
        """
        with self.open_ledger() as ledger, hold(ledger, day, run_id) as held:
            yield held.check

    @cached_property
    def pseudonymizer(self) -> Pseudonymizer:
        """Pseudonyms with the key of the settings, which is created on first use."""
        return load_pseudonymizer(self.settings)

    def erased_subjects(self, ledger: Ledger) -> ErasedSubjects | None:
        """The erased subjects as of now; None without any."""
        tombstones = LedgerErasure(ledger).tombstones()
        return ErasedSubjects(tombstones, self.pseudonymizer) if tombstones else None

    def erasure_state(self) -> frozenset[tuple[object, ...]]:
        """A value that changes with every erasure: what was read before may show the erased person."""
        with self.open_ledger() as ledger:
            return LedgerErasure(ledger).state()
