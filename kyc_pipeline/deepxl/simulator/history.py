"""The simulator's records, in memory and optionally in a JSON Lines file."""

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import BinaryIO

import msgspec

from kyc_pipeline.deepxl.contract import File, Result


class History:
    """All records in order of arrival. For one process at a time."""

    def __init__(self, store: Path | None = None) -> None:
        self._by_id: dict[int, Result] = {}
        self._by_tag: dict[tuple[str, str], list[Result]] = defaultdict(list)
        self._files: dict[str, File] = {}
        self._store: BinaryIO | None = None
        if store is not None:
            store.parent.mkdir(parents=True, exist_ok=True)
            if store.exists():
                self._load(store)
            self._store = store.open("ab")

    def add(self, record: Result) -> None:
        """Writes the record to the file, then keeps it in memory."""
        if self._store is not None:
            self._store.write(msgspec.json.encode(record) + b"\n")
            self._store.flush()
        self._index(record)

    def new_id(self, seed: int, submission_id: str) -> int:
        """A free id that depends only on the seed and the submission (except for collisions)."""
        digest = hashlib.blake2b(f"{seed}/{submission_id}".encode(), digest_size=5).digest()
        candidate = int.from_bytes(digest)
        while candidate in self._by_id:
            candidate += 1
        return candidate

    def get(self, verification_id: int) -> Result | None:
        """The record with this id."""
        return self._by_id.get(verification_id)

    def file(self, name: str) -> File | None:
        """The stored document whose URL ends in `name`."""
        return self._files.get(name)

    def all(self) -> list[Result]:
        """All records."""
        return list(self._by_id.values())

    def tagged(self, name: str, value: str) -> list[Result]:
        """The records with this tag."""
        return list(self._by_tag.get((name, value), ()))

    def close(self) -> None:
        """Closes the file."""
        if self._store is not None:
            self._store.close()

    def _load(self, store: Path) -> None:
        with store.open("rb+") as lines:
            whole = 0
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # cut off by a kill during the write: the client got no response
                self._index(msgspec.json.decode(line, type=Result))
                whole += len(line)
            lines.truncate(whole)

    def _index(self, record: Result) -> None:
        self._by_id[record.verification_id] = record
        for tag in record.tags:
            self._by_tag[tag.name, tag.value].append(record)
        for file in record.files:
            self._files[file.url.rpartition("/")[2]] = file
