"""Tombstones of erased people, by which ingest recognises and rejects them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from kyc_pipeline.errors import UsageError
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer

DETAIL: Final = "the subject was erased on request"
"""`detail` of a row that is rejected as `erased_subject`."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """All that is kept of an erased person: the pseudonym of a tag value, made with the key `key_id`."""

    name: str
    pseudonym: str
    key_id: str
    finished: bool = field(default=False, compare=False)


class ErasedSubjects:
    """The erased people. Call it with a submission's tags, including `submissionId`, to look for a match."""

    def __init__(self, tombstones: Iterable[Tombstone], pseudonymizer: Pseudonymizer) -> None:
        """Raises :class:`UsageError` if a tombstone was made with another key.

        Such people could not be recognised: their submissions would be sent and paid for again.
        """
        self.tombstones = frozenset(tombstones)
        self._pseudonymizer = pseudonymizer
        self._known: dict[str, set[str]] = {}
        for tombstone in self.tombstones:
            if tombstone.key_id != pseudonymizer.key_id:
                raise UsageError(
                    f"KYC_PSEUDONYM_KEY: people were erased under the key {tombstone.key_id}, but this is "
                    f"{pseudonymizer.key_id}: restore the old key, or they cannot be recognised"
                )
            self._known.setdefault(tombstone.name, set()).add(tombstone.pseudonym)

    def __call__(self, tags: Mapping[str, str]) -> bool:
        """Whether any of `tags` belongs to an erased person or submission."""
        return any(name in tags and self.has(name, tags[name]) for name in self._known)

    def has(self, name: str, value: str) -> bool:
        """Whether the tag `name` with this value has a tombstone."""
        known = self._known.get(name)
        return known is not None and self._pseudonymizer.tag(name, value) in known

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ErasedSubjects) and self.tombstones == other.tombstones

    def __hash__(self) -> int:
        return hash(self.tombstones)
