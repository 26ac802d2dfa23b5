"""Keyed pseudonyms (HMAC-SHA-256), separate for each domain.

With pseudonyms an analyst can count distinct people without knowing who they are. Unlike a plain hash, a
pseudonym cannot be reversed by trying every possible value unless the key is known (EDPB guidelines 01/2025
on pseudonymisation). The domain (the tag's name, or `document`) is part of the message, so equal values in
different domains have unrelated pseudonyms.
"""

import hmac
import secrets
import unicodedata
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.atomic import make_folder, replacing
from kyc_pipeline.settings import MIN_PSEUDONYM_KEY_LENGTH, Settings

# `Any`, since Arrow's stubs reject kernels that combine a column and a scalar.
Column: TypeAlias = Any
"""An Arrow array."""
DOCUMENT_DOMAIN: Final = "document"
_PLAIN: Final = "^[!-~]([ -~]*[!-~])?$"
"""Trimmed ASCII, which normalisation does not change."""


class Pseudonymizer:
    """Makes pseudonyms with one key. `key_id` identifies the key without revealing it."""

    def __init__(self, key: str) -> None:
        if len(key) < MIN_PSEUDONYM_KEY_LENGTH:
            raise UsageError(f"KYC_PSEUDONYM_KEY: must have at least {MIN_PSEUDONYM_KEY_LENGTH} characters")
        self._keyed = hmac.new(key.encode(), digestmod="sha256")
        self.key_id = self._hmac(b"key-id")[:8]

    def __repr__(self) -> str:
        return f"Pseudonymizer(key_id={self.key_id!r})"

    def tag(self, name: str, value: str) -> str:
        """The pseudonym (64 hex digits) of a tag's value, which is NFC-normalised and trimmed first."""
        return self._hmac(_domain(f"tag:{name}") + _normalised(value).encode(errors="surrogatepass"))

    def document(self, sha256: str) -> str:
        """The pseudonym (64 hex digits) of a document, from the SHA-256 (hex) of its bytes."""
        return self._hmac(_domain(DOCUMENT_DOMAIN) + sha256.lower().encode())

    def tags(self, names: Column, values: Column) -> Column:
        """:meth:`tag` for Arrow columns; NULL for a blank value, which identifies nobody."""
        values = _normalised_column(values)
        encoded = names.dictionary_encode()
        domains = [_domain(f"tag:{name}") for name in encoded.dictionary.to_pylist()]
        pseudonyms = self._hmacs(pa.array(domains, pa.binary()).take(encoded.indices), values)
        return pc.if_else(pc.equal(values, pa.scalar("")), pa.scalar(None, pa.string()), pseudonyms)

    def documents(self, sha256s: Column) -> Column:
        """:meth:`document` for an Arrow column."""
        return self._hmacs(pa.scalar(_domain(DOCUMENT_DOMAIN), pa.binary()), pc.ascii_lower(sha256s))

    def _hmac(self, message: bytes) -> str:
        keyed = self._keyed.copy()  # twice as fast as a new HMAC, which processes the key again
        keyed.update(message)
        return keyed.hexdigest()

    def _hmacs(self, domains: Column, values: Column) -> Column:
        """HMAC of each domain and value; repeated pairs, such as a company's tags, are computed once."""
        messages = pc.binary_join_element_wise(
            domains, values.cast(pa.binary()), pa.scalar(b"", pa.binary())
        ).dictionary_encode()
        hmacs = [self._hmac(message) for message in messages.dictionary.to_pylist()]
        return pa.array(hmacs, pa.string()).take(messages.indices)


def _domain(name: str) -> bytes:
    """The prefix of a message. The length distinguishes ("a", "bc") from ("ab", "c")."""
    return f"{len(name)}:{name}:".encode(errors="surrogatepass")


def _normalised(value: str) -> str:
    return unicodedata.normalize("NFC", value).strip()


def _normalised_column(values: Column) -> Column:
    needs_it: Column = pc.invert(pc.match_substring_regex(values, _PLAIN))
    normalised = [_normalised(value) for value in values.filter(needs_it).to_pylist()]
    return pc.replace_with_mask(values, needs_it, pa.array(normalised, pa.string()))


def has_pseudonym_key(settings: Settings) -> bool:
    """Whether there is a key: in the settings or in the key file."""
    return settings.kyc_pseudonym_key is not None or settings.pseudonym_key_file.exists()


def load_pseudonymizer(settings: Settings) -> Pseudonymizer:
    """A pseudonymizer with the configured key, or else with that of the key file.

    The file is created on first use, with mode 0600. If two processes start together, both use the key of the
    first to create it. Raises :class:`UsageError` if the key is too short or the file cannot be read.
    """
    if settings.kyc_pseudonym_key is not None:
        return Pseudonymizer(settings.kyc_pseudonym_key.get_secret_value())
    path = settings.pseudonym_key_file
    try:
        if not path.exists():
            make_folder(path.parent)
            with replacing(path, mode=0o600, keep_existing=True) as file:
                file.write(secrets.token_hex(32).encode())
        return Pseudonymizer(path.read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot use the pseudonym key file {path}: {type(error).__name__}") from error
