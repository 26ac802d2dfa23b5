"""The stores that may hold a person's data."""

from collections.abc import Collection
from dataclasses import dataclass

from kyc_pipeline.erasure.landing_zone import LandingZone
from kyc_pipeline.erasure.ledger_store import LedgerErasure
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.privacy.erased import ErasedSubjects, Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.settings import Settings


@dataclass(frozen=True)
class Stores:
    """Landing zone, lake and ledger, and what is needed to recognise a person in them."""

    landing: LandingZone
    lake: Lake
    ledger: LedgerErasure
    pseudonymizer: Pseudonymizer
    clear_tags: Collection[str]
    """Tags whose values are in the clear in curated tables."""

    @classmethod
    def of(cls, settings: Settings, ledger: Ledger, pseudonymizer: Pseudonymizer) -> "Stores":
        """The configured stores."""
        return cls(
            LandingZone(settings.kyc_landing, settings.kyc_csv_encoding),
            Lake(settings.kyc_lake),
            LedgerErasure(ledger),
            pseudonymizer,
            settings.kyc_clear_tags,
        )

    def held_as(self, name: str, value: str) -> Tombstone:
        """The subject of the tag's legal hold, perhaps with earlier keys; without a hold, a new one."""
        subjects = (hold.subject for hold in self.ledger.holds())
        known = (each for each in subjects if ErasedSubjects([each], self.pseudonymizer).has(name, value))
        return next(known, self.tombstone(name, value))

    def tombstone(self, name: str, value: str) -> Tombstone:
        """The tombstone of the tag `name` with this value."""
        return Tombstone.of_tag(self.pseudonymizer, name, value)
