"""What the settings say about files of the landing zone, and what they decided about a day.

If a setting changes, a day is ingested again only if the new value changes a decision about its files; if the
required consents change, every day is.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import msgspec

from kyc_pipeline.settings import Settings
from kyc_pipeline.vocabulary import DOCUMENT_TYPES


class Decided(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the settings decided about a day. The lake records it with the day."""

    csv_encoding: str | None = None
    """The encoding of a CSV that is neither UTF-8 nor UTF-16."""
    accepted_types: frozenset[str] = frozenset()
    """Media types of documents that the setting accepted."""
    refused_types: frozenset[str] = frozenset()
    """Media types of documents that the setting rejected."""
    rejects_duplicates: bool | None = None
    """Whether rows with the documents of another submission were rejected; None without such rows."""
    consents: frozenset[str] = frozenset()
    """Accepted values of the column `consent`; each row needed one."""

    def __str__(self) -> str:
        return msgspec.json.encode(self, order="deterministic").decode()


@dataclass(frozen=True, slots=True)
class LandingOptions:
    """What the settings say about files of the landing zone."""

    csv_encoding: str | None = None
    """Encoding of CSV manifests that are neither UTF-8 nor UTF-16; without it, these are refused."""
    document_types: Collection[str] = DOCUMENT_TYPES
    """Media types that DeepXL takes."""
    reject_duplicate_documents: bool = False
    """Whether a row is rejected if another submission has its two documents."""
    consents: Collection[str] = frozenset()
    """Accepted values of the column `consent`; each row needs one, unless this is empty."""

    @classmethod
    def of(cls, settings: Settings) -> "LandingOptions":
        """The configured options."""
        return cls(
            settings.kyc_csv_encoding,
            settings.deepxl_document_types,
            settings.kyc_duplicate_documents == "reject",
            settings.kyc_require_consent,
        )

    def decide(self, *, needs_encoding: bool, types: Collection[str], has_duplicates: bool) -> Decided:
        """What these options decide about a day with documents of these media types."""
        return Decided(
            self.csv_encoding if needs_encoding else None,
            frozenset(types).intersection(self.document_types),
            frozenset(types).difference(self.document_types),
            self.reject_duplicate_documents if has_duplicates else None,
            frozenset(self.consents),
        )

    def would_repeat(self, decided: str) -> bool:
        """Whether they would decide the same again. `decided` is a :class:`Decided` as text, or empty."""
        if not decided:
            return True
        before = msgspec.json.decode(decided, type=Decided)
        return (
            before.csv_encoding in (None, self.csv_encoding)
            and before.accepted_types.issubset(self.document_types)
            and before.refused_types.isdisjoint(self.document_types)
            and before.rejects_duplicates in (None, self.reject_duplicate_documents)
            and before.consents == frozenset(self.consents)
        )


DEFAULTS: Final = LandingOptions()
