"""The assets' resource: the settings, and the lake, ledger and pseudonyms that they configure.

There is one resource, so that tests and the command line have one thing to replace. It opens a store only
when an asset needs it, so a code location loads without ledger, lake or credential.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from kyc_pipeline.analyze.turn import Turn, publication_turn
from kyc_pipeline.erasure.ledger_store import LedgerErasure
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.identity import check_lake, open_ledger
from kyc_pipeline.ledger.leases import HeldLease, hold
from kyc_pipeline.ledger.pseudonym_key import ledgers_pseudonymizer
from kyc_pipeline.privacy.erased import ErasedSubjects
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer, has_pseudonym_key
from kyc_pipeline.settings import Settings


@dataclass
class Pipeline:
    """The resource `pipeline`."""

    settings: Settings

    @property
    def lake(self) -> Lake:
        """The lake at `KYC_LAKE`."""
        return Lake(self.settings.kyc_lake)

    def open_ledger(self) -> Ledger:
        """The ledger at `KYC_LEDGER_URL`; the caller closes it.

        Raises :class:`~kyc_pipeline.ledger.database.WrongLedger` if it is known not to be the lake's.
        """
        return open_ledger(self.settings)

    @contextlib.contextmanager
    def day_lease(self, day: str, run_id: str) -> Iterator[HeldLease]:
        """Holds the day's lease, so that no other run ingests, verifies or erases the day.

        Raises :class:`~kyc_pipeline.ledger.leases.PartitionBusy` with the name of the current holder.
        """
        with self.open_ledger() as ledger, hold(ledger, day, run_id) as held:
            yield held

    @cached_property
    def pseudonymizer(self) -> Pseudonymizer:
        """The pseudonymizer with the ledger's key, which is created on first use."""
        with Ledger(self.settings.kyc_ledger_url) as ledger:
            return ledgers_pseudonymizer(self.settings, ledger)

    @contextlib.contextmanager
    def publication_turn(self, run_id: str) -> Iterator[Turn]:
        """Waits until no other run publishes, on any host; see :mod:`kyc_pipeline.analyze.turn`."""
        # Not `open_ledger`, as in `erasure_state`.
        with (
            Ledger(self.settings.kyc_ledger_url) as ledger,
            publication_turn(ledger, self.settings.kyc_warehouse, run_id) as turn,
        ):
            yield turn

    def check_lake(self) -> None:
        """Raises :class:`~kyc_pipeline.ledger.database.WrongLedger` if the ledger belongs to another lake."""
        with Ledger(self.settings.kyc_ledger_url) as ledger:
            check_lake(self.lake, ledger)

    def is_erasing(self) -> bool:
        """Whether an erasure waits for the next publication."""
        with Ledger(self.settings.kyc_ledger_url) as ledger:
            return any(not tombstone.finished for tombstone in LedgerErasure(ledger).tombstones())

    def pseudonym_key_id(self) -> str | None:
        """The identity of the pseudonym key; None if there is none yet. Creates no key."""
        known = self._known_pseudonymizer()
        return known.key_id if known else None

    def subject_secret(self) -> str:
        """What makes the published pseudonyms of people; empty if there is no key yet. Creates no key."""
        known = self._known_pseudonymizer()
        return known.secret("subjects") if known else ""

    def _known_pseudonymizer(self) -> Pseudonymizer | None:
        if not has_pseudonym_key(self.settings):
            return None
        with Ledger(self.settings.kyc_ledger_url) as ledger:
            return ledgers_pseudonymizer(self.settings, ledger, keeps=False)

    def erased_subjects(self, ledger: Ledger) -> ErasedSubjects | None:
        """The subjects erased so far; None if there are none."""
        tombstones = LedgerErasure(ledger).tombstones()
        return ErasedSubjects(tombstones, self.pseudonymizer) if tombstones else None

    def erasure_state(self) -> frozenset[tuple[object, ...]]:
        """A value that changes with every erasure. What was read before may contain the erased person."""
        # Not `open_ledger`: publishing neither needs nor creates a ledger.
        with Ledger(self.settings.kyc_ledger_url) as ledger:
            return LedgerErasure(ledger).state()
