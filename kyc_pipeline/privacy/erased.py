"""Who was erased: the tombstones that keep a person from coming back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from kyc_pipeline.errors import UsageError
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer

DETAIL: Final = "the subject was erased on request"
"""`detail` of a row that is rejected as `erased_subject`."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What stays of an erased person: the pseudonym of a tag's value, made with the key `key_id`."""

    name: str
    pseudonym: str
    key_id: str
    finished: bool = field(default=False, compare=False)


class ErasedSubjects:
    """Who was erased. Call it with a submission's tags (`submissionId` among them) to ask."""

    def __init__(self, tombstones: Iterable[Tombstone], pseudonymizer: Pseudonymizer) -> None:
        """Raises :class:`UsageError` where an erasure was recorded under another key.

        Such people could not be recognised, and would be sent and paid for again.
        """
        self.tombstones = frozenset(tombstones)
        self._pseudonymizer = pseudonymizer
        self._known: dict[str, set[str]] = {}
        for tombstone in self.tombstones:
            if tombstone.key_id != pseudonymizer.key_id:
                raise UsageError(
                    f"KYC_PSEUDONYM_KEY: people were erased under the key {tombstone.key_id}, and this is "
                    f"{pseudonymizer.key_id}: restore the former key, else they cannot be recognised"
                )
            self._known.setdefault(tombstone.name, set()).add(tombstone.pseudonym)

    def __call__(self, tags: Mapping[str, str]) -> bool:
        """Whether one of `tags` is an erased person's or an erased submission's."""
        return any(name in tags and self.has(name, tags[name]) for name in self._known)

    def has(self, name: str, value: str) -> bool:
        """Whether the tag `name` with this value was erased."""
        known = self._known.get(name)
        return known is not None and self._pseudonymizer.tag(name, value) in known

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ErasedSubjects) and self.tombstones == other.tombstones

    def __hash__(self) -> int:
        return hash(self.tombstones)
