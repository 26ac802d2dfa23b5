"""Tombstones of erased people, by which ingest recognises and rejects them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from kyc_pipeline.errors import UsageError
from kyc_pipeline.privacy.pseudonyms import DOCUMENT_DOMAIN, Pseudonymizer
from kyc_pipeline.privacy.spelling import fold, fold_name
from kyc_pipeline.vocabulary import SUBMISSION_TAG

DETAIL: Final = "the subject was erased on request"
"""`detail` of a row that is rejected as `erased_subject`."""


def one_name(name: str) -> str:
    """The name of a tag in its one spelling. `submissionId` is the pipeline's own and is spelt only so."""
    return name if name == SUBMISSION_TAG else fold_name(name)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What recognises an erased person: the pseudonym of a tag value, made with the key `key_id`.

    Or that of a document, under the name `document`, for which no tag's pseudonym can be mistaken.
    """

    name: str
    pseudonym: str
    key_id: str
    finished: bool = field(default=False, compare=False)
    earlier_keys: tuple[str, ...] = ()
    """The ids of the keys that `key_id` replaced, oldest first."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The ids of the keys that made it, in order."""
        return (*self.earlier_keys, self.key_id)

    def rekeyed(self, pseudonymizer: Pseudonymizer) -> "Tombstone":
        """The tombstone that replaces this one under the key of `pseudonymizer`."""
        pseudonym = pseudonymizer.rekeyed(self.pseudonym)
        return replace(self, pseudonym=pseudonym, key_id=pseudonymizer.key_id, earlier_keys=self.keys)

    @classmethod
    def of_tag(cls, pseudonymizer: Pseudonymizer, name: str, value: str) -> "Tombstone":
        """The tombstone of a tag's value in all its spellings; of a submission id, in this one."""
        name, value = one_name(name), value if name == SUBMISSION_TAG else fold(value)
        return cls(name, pseudonymizer.tag(name, value), pseudonymizer.key_id)

    @classmethod
    def of_document(cls, pseudonymizer: Pseudonymizer, sha256: str) -> "Tombstone":
        """The tombstone of a document with these bytes."""
        return cls(DOCUMENT_DOMAIN, pseudonymizer.document(sha256), pseudonymizer.key_id)


class ErasedSubjects:
    """The erased people. Call it with a submission's tags, including `submissionId`, to look for a match."""

    def __init__(self, tombstones: Iterable[Tombstone], pseudonymizer: Pseudonymizer) -> None:
        """Raises :class:`UsageError` if a tombstone was made with a key that `pseudonymizer` does not know.

        Such people could not be recognised: their submissions would be sent and paid for again.
        """
        self.tombstones = frozenset(tombstones)
        self._pseudonymizer = pseudonymizer
        self._names: dict[str, set[str]] = {}
        """How tombstones spell a tag's name, by its one spelling: older ones have it as it was given."""
        self._keys = {
            tuple(_with_key(pseudonymizer, key_id) for key_id in keys)
            for keys in {tombstone.keys for tombstone in self.tombstones}
        }
        for tombstone in self.tombstones:
            self._names.setdefault(one_name(tombstone.name), set()).add(tombstone.name)
        self._known = {(each.name, each.pseudonym) for each in self.tombstones}

    def __call__(self, tags: Mapping[str, str]) -> bool:
        """Whether any of `tags` belongs to an erased person or submission."""
        return any(self.has(name, value) for name, value in tags.items())

    def has(self, name: str, value: str) -> bool:
        """Whether the tag `name` with this value has a tombstone."""
        names = self._names.get(one_name(name))
        if names is None or not fold(value):
            return False
        # Older tombstones were made of the value as it was given, so they match that and its one spelling.
        values = {value} if name == SUBMISSION_TAG else {value, fold(value), fold(value, former=True)}
        return any(self._has_exactly(each, spelling) for each in names for spelling in values)

    def _has_exactly(self, name: str, value: str) -> bool:
        pseudonyms = self._pseudonyms(lambda key: key.tag(name, value))
        return any((name, pseudonym) in self._known for pseudonym in pseudonyms)

    def has_document(self, sha256: str | None) -> bool:
        """Whether the document with these bytes has a tombstone."""
        return (
            sha256 is not None
            and DOCUMENT_DOMAIN in self._names
            and any(
                (DOCUMENT_DOMAIN, pseudonym) in self._known
                for pseudonym in self._pseudonyms(lambda key: key.document(sha256))
            )
        )

    def pseudonyms_of_submission(self, submission_id: str) -> set[str]:
        """What may have replaced the submission's id, if it was erased."""
        now = self._pseudonymizer.tag(SUBMISSION_TAG, submission_id)
        return {now, *self._pseudonyms(lambda key: key.tag(SUBMISSION_TAG, submission_id))}

    def _pseudonyms(self, make: Callable[[Pseudonymizer], str]) -> Iterator[str]:
        """The pseudonym that `make` gives, under each sequence of keys that made tombstones."""
        for first, *later in self._keys:
            pseudonym = make(first)
            for key in later:
                pseudonym = key.rekeyed(pseudonym)
            yield pseudonym

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ErasedSubjects) and self.tombstones == other.tombstones

    def __hash__(self) -> int:
        return hash(self.tombstones)


def _with_key(pseudonymizer: Pseudonymizer, key_id: str) -> Pseudonymizer:
    if (found := pseudonymizer.of_key(key_id)) is None:
        raise UsageError(
            f"KYC_PSEUDONYM_KEY: people were erased under the key {key_id}, but this is "
            f"{pseudonymizer.key_id}: add the old key to KYC_PSEUDONYM_OLD_KEYS, or they cannot be recognised"
        )
    return found
