"""Keyed pseudonyms (HMAC-SHA-256), separate for each domain.

With pseudonyms an analyst can count distinct people without knowing who they are. Unlike a plain hash, a
pseudonym cannot be reversed by trying every possible value unless the key is known (EDPB guidelines 01/2025
on pseudonymisation). The domain (the tag's name, or `document`) is part of the message, so equal values in
different domains have unrelated pseudonyms.

A key can be replaced: the new one then makes the lake's pseudonyms. Of erased people, only pseudonyms are
left, so it makes pseudonyms of these (`rekeyed`). Then the old key alone no longer helps to guess who they
are; recognising a person takes both keys.
"""

import copy
import functools
import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.atomic import make_folder, replacing
from kyc_pipeline.settings import Settings, key_problem, require_private

# `Any`, since Arrow's stubs reject kernels that combine a column and a scalar.
ArrowColumn: TypeAlias = Any
"""An Arrow array."""
DOCUMENT_DOMAIN: Final = "document"
_PSEUDONYM_DOMAIN: Final = "pseudonym"
_PLAIN: Final = "^[!-~]([ -~]*[!-~])?$"
"""Trimmed ASCII, which normalisation does not change."""


class Pseudonymizer:
    """Makes pseudonyms with one key.

    `key_id` tells whether two keys are the same. It is short and slow to compute, so that it is of no help
    to somebody who tries keys.
    """

    def __init__(self, key: str, others: "Iterable[Pseudonymizer]" = ()) -> None:
        self.others = tuple(others)
        """The pseudonymizers of other keys, to recognise people who were erased under them."""
        self._keyed = hmac.new(key.encode(), digestmod="sha256")
        self.key_id = _key_id(key)
        self.old_key_id = self._hmac(b"key-id")[:8]
        """As tombstones had it before."""

    def __repr__(self) -> str:
        return f"Pseudonymizer(key_id={self.key_id!r})"

    def tag(self, name: str, value: str) -> str:
        """The pseudonym (64 hex digits) of a tag's value, which is NFC-normalised and trimmed first."""
        return self._hmac(_domain(f"tag:{name}") + _normalised(value).encode(errors="surrogatepass"))

    def document(self, sha256: str) -> str:
        """The pseudonym (64 hex digits) of a document, from the SHA-256 (hex) of its bytes."""
        return self._hmac(_domain(DOCUMENT_DOMAIN) + sha256.lower().encode())

    def rekeyed(self, pseudonym: str) -> str:
        """The pseudonym (64 hex digits) of a pseudonym that was made with another key."""
        return self._hmac(_domain(_PSEUDONYM_DOMAIN) + pseudonym.encode())

    def secret(self, purpose: str) -> str:
        """A secret (64 hex digits) that only the key gives, another one for each purpose."""
        return self._hmac(_domain(f"secret:{purpose}"))

    def of_key(self, key_id: str) -> "Pseudonymizer | None":
        """The pseudonymizer with this key: this one or one of `others`; None if the key is unknown."""
        every = (self, *self.others)
        return next((each for each in every if key_id in (each.key_id, each.old_key_id)), None)

    def switched_to(self, key_id: str) -> "Pseudonymizer | None":
        """A pseudonymizer that knows the same keys and uses this one; None if it is not among them."""
        found = self.of_key(key_id)
        if found is None or found is self:
            return found
        switched = copy.copy(found)
        switched.others = tuple(each for each in (self, *self.others) if each is not found)
        return switched

    def tags(self, names: ArrowColumn, values: ArrowColumn) -> ArrowColumn:
        """:meth:`tag` for Arrow columns; NULL for a blank value, which identifies nobody."""
        values = _normalised_column(values)
        encoded = names.dictionary_encode()
        domains = [_domain(f"tag:{name}") for name in encoded.dictionary.to_pylist()]
        pseudonyms = self._hmacs(pa.array(domains, pa.binary()).take(encoded.indices), values)
        return pc.if_else(pc.equal(values, pa.scalar("")), pa.scalar(None, pa.string()), pseudonyms)

    def documents(self, sha256s: ArrowColumn) -> ArrowColumn:
        """:meth:`document` for an Arrow column."""
        return self._hmacs(pa.scalar(_domain(DOCUMENT_DOMAIN), pa.binary()), pc.ascii_lower(sha256s))

    def _hmac(self, message: bytes) -> str:
        keyed = self._keyed.copy()  # twice as fast as a new HMAC, which processes the key again
        keyed.update(message)
        return keyed.hexdigest()

    def _hmacs(self, domains: ArrowColumn, values: ArrowColumn) -> ArrowColumn:
        """HMAC of each domain and value; repeated pairs, such as a company's tags, are computed once."""
        messages = pc.binary_join_element_wise(
            domains, values.cast(pa.binary()), pa.scalar(b"", pa.binary())
        ).dictionary_encode()
        hmacs = [self._hmac(message) for message in messages.dictionary.to_pylist()]
        return pa.array(hmacs, pa.string()).take(messages.indices)


@functools.lru_cache(maxsize=16)
def _key_id(key: str) -> str:
    return hashlib.scrypt(key.encode(), salt=b"kyc-pipeline key id", n=2**14, r=8, p=1, dklen=3).hex()


def _domain(name: str) -> bytes:
    """The prefix of a message. The length distinguishes ("a", "bc") from ("ab", "c")."""
    return f"{len(name)}:{name}:".encode(errors="surrogatepass")


def _normalised(value: str) -> str:
    return unicodedata.normalize("NFC", value).strip()


def _normalised_column(values: ArrowColumn) -> ArrowColumn:
    needs_it: ArrowColumn = pc.invert(pc.match_substring_regex(values, _PLAIN))
    normalised = [_normalised(value) for value in values.filter(needs_it).to_pylist()]
    return pc.replace_with_mask(values, needs_it, pa.array(normalised, pa.string()))


def has_pseudonym_key(settings: Settings) -> bool:
    """Whether there is a key: in the settings or in the key file."""
    return settings.kyc_pseudonym_key is not None or settings.pseudonym_key_file.exists()


def load_pseudonymizer(settings: Settings) -> Pseudonymizer:
    """A pseudonymizer with the configured key, or else with that of the key file; it knows the old keys.

    The file is created on first use, with mode 0600. If two processes start together, both use the key that
    was created first. Raises :class:`UsageError` if the key can be guessed, or if the file cannot be read
    or other users may open it.
    """
    others = [Pseudonymizer(key) for key in settings.old_pseudonym_keys]
    if settings.kyc_pseudonym_key is not None:
        return Pseudonymizer(settings.kyc_pseudonym_key.get_secret_value(), others)
    path = settings.pseudonym_key_file
    try:
        if not path.exists():
            make_folder(path.parent)
            with replacing(path, mode=0o600, keep_existing=True) as file:
                file.write(secrets.token_hex(32).encode())
        require_private(path)
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(f"cannot use the pseudonym key file {path}: {cause}") from error
    if problem := key_problem(key):
        raise UsageError(f"the pseudonym key in {path} {problem}")
    return Pseudonymizer(key, others)
