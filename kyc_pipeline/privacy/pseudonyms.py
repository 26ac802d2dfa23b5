"""Keyed pseudonyms (HMAC-SHA-256), separate for each domain.

A pseudonym lets an analyst count distinct people without knowing who they are. Without the key it cannot
be reversed by trying every possible value, which a plain hash could (EDPB guidelines 01/2025 on
pseudonymisation). A domain (the tag's name, or `document`) is part of the message, so that equal values in
two domains have unrelated pseudonyms.
"""

import contextlib
import hashlib
import os
import secrets
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from kyc_pipeline.errors import UsageError
from kyc_pipeline.settings import MIN_PSEUDONYM_KEY_LENGTH, Settings

DOCUMENT_DOMAIN = "document"
_BLOCK_SIZE = hashlib.sha256().block_size


class Pseudonymizer:
    """Makes pseudonyms under one key. `key_id` names the key without telling it."""

    def __init__(self, key: str) -> None:
        if len(key) < MIN_PSEUDONYM_KEY_LENGTH:
            raise UsageError(f"KYC_PSEUDONYM_KEY: must have at least {MIN_PSEUDONYM_KEY_LENGTH} characters")
        # HMAC as in RFC 2104, with the key's two blocks hashed once: three times as fast as the module
        # `hmac`, and pseudonyms are most of the work of flattening. A test holds it against the module.
        block = key.encode()
        block = (hashlib.sha256(block).digest() if len(block) > _BLOCK_SIZE else block).ljust(
            _BLOCK_SIZE, b"\0"
        )
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))
        # A lake has few domains, the names of its tags: the start of the message is hashed once for each.
        self._start = lru_cache(maxsize=256)(self._hash_start)
        self.key_id = self._finish(self._inner.copy(), b"key-id")[:8]

    def __repr__(self) -> str:
        return f"Pseudonymizer(key_id={self.key_id!r})"

    def tag(self, name: str, value: str) -> str:
        """64 hex digits for the tag `name`'s `value` (NFC-normalised and trimmed)."""
        return self._pseudonym(f"tag:{name}", _normalised(value))

    def tags(self, name: str, values: Iterable[str]) -> list[str | None]:
        """:meth:`tag` of each value; None for a blank one, which tells nobody from anybody else."""
        start, finish = self._start(f"tag:{name}"), self._finish
        texts = map(_normalised, values)
        return [finish(start.copy(), text.encode(errors="surrogatepass")) if text else None for text in texts]

    def documents(self, sha256s: Iterable[str]) -> list[str]:
        """:meth:`document` of each."""
        start, finish = self._start(DOCUMENT_DOMAIN), self._finish
        return [finish(start.copy(), sha256.lower().encode()) for sha256 in sha256s]

    def document(self, sha256: str) -> str:
        """64 hex digits for a document, from the SHA-256 (hex) of its bytes."""
        return self._pseudonym(DOCUMENT_DOMAIN, sha256.lower())

    def _pseudonym(self, domain: str, value: str) -> str:
        return self._finish(self._start(domain).copy(), value.encode(errors="surrogatepass"))

    def _hash_start(self, domain: str) -> "hashlib._Hash":
        start = self._inner.copy()
        # The length prefix keeps ("a", "bc") apart from ("ab", "c").
        start.update(f"{len(domain)}:{domain}:".encode(errors="surrogatepass"))
        return start

    def _finish(self, inner: "hashlib._Hash", rest: bytes) -> str:
        inner.update(rest)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.hexdigest()


def _normalised(value: str) -> str:
    return unicodedata.normalize("NFC", value).strip()


def load_pseudonymizer(settings: Settings) -> Pseudonymizer:
    """The pseudonymizer of the settings' key; without one, of a key file that is made on first use.

    The file is created with mode 0600 and in one step (`os.link`), so that two processes that start at the
    same time use the same key. Raises :class:`UsageError` for a key that is too short or a file that
    cannot be read.
    """
    if settings.kyc_pseudonym_key is not None:
        return Pseudonymizer(settings.kyc_pseudonym_key.get_secret_value())
    path = settings.pseudonym_key_file
    try:
        if not path.exists():
            _create_key_file(path)
        return Pseudonymizer(path.read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot use the pseudonym key file {path}: {type(error).__name__}") from error


def _create_key_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        # Where another process made it first, its key is the key.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
