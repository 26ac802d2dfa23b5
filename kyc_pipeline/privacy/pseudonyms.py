"""Keyed pseudonyms (HMAC-SHA-256), separate for each domain.

A pseudonym lets an analyst count distinct people without knowing who they are. Without the key it cannot
be reversed by trying every possible value, which a plain hash could (EDPB guidelines 01/2025 on
pseudonymisation). A domain (the tag's name, or `document`) is part of the message, so that equal values in
two domains have unrelated pseudonyms.
"""

import hmac
import secrets
import unicodedata
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.atomic import replacing
from kyc_pipeline.settings import MIN_PSEUDONYM_KEY_LENGTH, Settings

# The stubs of Arrow do not know kernels between a column and a scalar.
Column: TypeAlias = Any
"""An Arrow array."""
DOCUMENT_DOMAIN: Final = "document"
_PLAIN: Final = "^[!-~]([ -~]*[!-~])?$"
"""ASCII without blanks around it, which normalisation leaves as it is."""


class Pseudonymizer:
    """Makes pseudonyms under one key. `key_id` names the key without telling it."""

    def __init__(self, key: str) -> None:
        if len(key) < MIN_PSEUDONYM_KEY_LENGTH:
            raise UsageError(f"KYC_PSEUDONYM_KEY: must have at least {MIN_PSEUDONYM_KEY_LENGTH} characters")
        self._keyed = hmac.new(key.encode(), digestmod="sha256")
        self.key_id = self._hmac(b"key-id")[:8]

    def __repr__(self) -> str:
        return f"Pseudonymizer(key_id={self.key_id!r})"

    def tag(self, name: str, value: str) -> str:
        """64 hex digits for the tag `name`'s `value` (NFC-normalised and trimmed)."""
        return self._hmac(_domain(f"tag:{name}") + _normalised(value).encode(errors="surrogatepass"))

    def document(self, sha256: str) -> str:
        """64 hex digits for a document, from the SHA-256 (hex) of its bytes."""
        return self._hmac(_domain(DOCUMENT_DOMAIN) + sha256.lower().encode())

    def tags(self, names: Column, values: Column) -> Column:
        """:meth:`tag` of each name and value, in Arrow; NULL for a blank value, which tells nobody from
        anybody else."""
        values = _all_normalised(values)
        each_name = names.dictionary_encode()
        domains = [_domain(f"tag:{name}") for name in each_name.dictionary.to_pylist()]
        made = self._hmacs(pa.array(domains, pa.binary()).take(each_name.indices), values)
        return pc.if_else(pc.equal(values, pa.scalar("")), pa.scalar(None, pa.string()), made)

    def documents(self, sha256s: Column) -> Column:
        """:meth:`document` of each, in Arrow."""
        return self._hmacs(pa.scalar(_domain(DOCUMENT_DOMAIN), pa.binary()), pc.ascii_lower(sha256s))

    def _hmac(self, message: bytes) -> str:
        keyed = self._keyed.copy()  # half the time of a new one, which would read the key again
        keyed.update(message)
        return keyed.hexdigest()

    def _hmacs(self, domains: Column, values: Column) -> Column:
        """HMAC of each domain and value, computed once for what repeats, such as the company's tags."""
        messages = pc.binary_join_element_wise(
            domains, values.cast(pa.binary()), pa.scalar(b"", pa.binary())
        ).dictionary_encode()
        made = [self._hmac(message) for message in messages.dictionary.to_pylist()]
        return pa.array(made, pa.string()).take(messages.indices)


def _domain(name: str) -> bytes:
    """The start of a message. The length keeps ("a", "bc") apart from ("ab", "c")."""
    return f"{len(name)}:{name}:".encode(errors="surrogatepass")


def _normalised(value: str) -> str:
    return unicodedata.normalize("NFC", value).strip()


def _all_normalised(values: Column) -> Column:
    is_other: Column = pc.invert(pc.match_substring_regex(values, _PLAIN))
    others = [_normalised(value) for value in values.filter(is_other).to_pylist()]
    return pc.replace_with_mask(values, is_other, pa.array(others, pa.string()))


def load_pseudonymizer(settings: Settings) -> Pseudonymizer:
    """The pseudonymizer of the settings' key; without one, of a key file that is made on first use.

    The file has mode 0600. Of two processes that start at the same time, both use the key of the one that
    made it first. Raises :class:`UsageError` for a key that is too short or a file that cannot be read.
    """
    if settings.kyc_pseudonym_key is not None:
        return Pseudonymizer(settings.kyc_pseudonym_key.get_secret_value())
    path = settings.pseudonym_key_file
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, mode=0o600, keep_existing=True) as file:
                file.write(secrets.token_hex(32).encode())
        return Pseudonymizer(path.read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot use the pseudonym key file {path}: {type(error).__name__}") from error
