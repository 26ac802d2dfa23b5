"""What happened to a disk, in order; and what a power cut leaves of it.

Two processes append to one journal, the file system and the test (which notes what DeepXL billed), so the
order is that of both. As in POSIX, what was written is safe after an fsync of its file, and a name after an
fsync of its folder. Of the rest, a power cut keeps all, nothing, or some: parts of writes, in any order, and
the first changes of each folder's names, in order.
"""

import base64
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = 1
_SECTOR: Final = 512
Event = tuple[Any, ...]


class Journal:
    """Appends events, one a line."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _append(self, *event: Any) -> None:
        os.write(self._file, json.dumps(event).encode() + b"\n")

    def write(self, file: int, offset: int, data: bytes) -> None:
        self._append("write", file, offset, base64.b64encode(data).decode())

    def truncate(self, file: int, length: int) -> None:
        self._append("truncate", file, length)

    def sync(self, node: int) -> None:
        self._append("sync", node)

    def name(self, folder: int, name: str, node: int | None, is_folder: bool) -> None:
        self._append("name", folder, name, node, is_folder)

    def billed(self, submission_id: str) -> None:
        self._append("billed", submission_id)

    def note(self, what: str) -> None:
        """Marks a moment of the test."""
        self._append("note", what)


def read(path: Path) -> list[Event]:
    return [tuple(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass
class _Content:
    safe: bytearray = field(default_factory=bytearray)
    pending: list[Event] = field(default_factory=list)


@dataclass
class _Names:
    safe: dict[str, int] = field(default_factory=dict)
    pending: list[tuple[str, int | None]] = field(default_factory=list)


Keep = Callable[[Sequence[Any]], Iterator[Any]]
"""What a power cut keeps of the changes that are not safe."""


def everything(pending: Sequence[Any]) -> Iterator[Any]:
    yield from pending


def nothing(_: Sequence[Any]) -> Iterator[Any]:
    yield from ()


def torn(chance: random.Random) -> Keep:
    """Some writes, some of them in part; the first names."""

    def keep(pending: Sequence[Any]) -> Iterator[Any]:
        if pending and pending[0][0] not in ("write", "truncate"):
            yield from pending[: chance.randint(0, len(pending))]
            return
        for change in pending:
            fate = chance.random()
            if fate < 0.4:
                yield change
            elif fate < 0.7 and change[0] == "write":
                *where, data = change
                count = chance.randrange(0, len(data) + 1, _SECTOR)  # of base64: three quarters of a sector
                yield (*where, data[:count])

    return keep


@dataclass
class _Disk:
    """Files and folders by number: what is safe, and what is pending."""

    contents: dict[int, _Content] = field(default_factory=dict)
    names: dict[int, _Names] = field(default_factory=lambda: {ROOT: _Names()})

    def take(self, kind: str, *details: Any) -> None:
        """One event; notes of the test change nothing."""
        if kind in ("write", "truncate"):
            self.contents[details[0]].pending.append((kind, *details))
        elif kind == "name":
            parent, name, node, is_folder = details
            self.names[parent].pending.append((name, node))
            if node is not None and is_folder:
                self.names.setdefault(node, _Names())
            elif node is not None:
                self.contents.setdefault(node, _Content())
        elif kind == "sync":
            self.settle(details[0], everything)

    def settle(self, node: int, keep: Keep) -> None:
        """Makes safe what is kept of the pending changes, and forgets the others."""
        if node in self.names:
            _apply_names(self.names[node], keep)
        else:
            _apply(self.contents[node], keep)

    def write_out(self, node: int, path: Path) -> None:
        path.mkdir()
        for name, child in self.names[node].safe.items():
            if child in self.names:
                self.write_out(child, path / name)
            else:
                (path / name).write_bytes(self.contents[child].safe)


def after_cut(events: Sequence[Event], keep: Keep, folder: Path) -> None:
    """Makes `folder` what the disk holds if the power is cut after these events."""
    disk = _Disk()
    for event in events:
        disk.take(*event)
    for node in (*disk.contents, *disk.names):
        disk.settle(node, keep)
    disk.write_out(ROOT, folder)


def _apply(content: _Content, keep: Keep) -> None:
    for kind, _, at, *data in keep(content.pending):
        written = base64.b64decode(data[0]) if data else b""
        content.safe.extend(bytes(max(0, at - len(content.safe))))
        if kind == "truncate":
            del content.safe[at:]
        else:
            content.safe[at : at + len(written)] = written
    content.pending.clear()


def _apply_names(names: _Names, keep: Keep) -> None:
    for name, node in keep(names.pending):
        if node is None:
            names.safe.pop(name, None)
        else:
            names.safe[name] = node
    names.pending.clear()
