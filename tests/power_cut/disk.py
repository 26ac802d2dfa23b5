"""A file system in memory (FUSE) that writes down, in order, what happens to it, and that fails on request.

`python -m tests.power_cut.disk MOUNT_POINT JOURNAL TYPE` serves it until it is unmounted, as type
`fuse.TYPE`. :func:`fail` says which of its changes fail: writes, truncations, syncs, renames, new names.
"""

import errno
import itertools
import os
import stat
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mfusepy

from tests.power_cut.journal import ROOT, Journal

FAILURE = "user.fails"
"""The extended attribute that :func:`fail` sets on the root."""


def fail(mount_point: Path, number: int, code: int, *, lasts: bool) -> None:
    """Lets the `number`-th change from now on fail with errno `code`; if it `lasts`, each later one too."""
    os.setxattr(mount_point, FAILURE, f"{number} {code} {lasts:d}".encode())


def mend(mount_point: Path) -> None:
    """Lets no change fail any more."""
    fail(mount_point, 0, 0, lasts=False)


@dataclass
class Node:
    number: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    children: dict[str, "Node"] = field(default_factory=dict)
    links: int = 1
    times: tuple[int, int] = field(default_factory=lambda: (time.time_ns(),) * 2)


class Disk(mfusepy.Operations):  # type: ignore[misc]
    use_ns = True

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._left = self._code = self._lasts = 0
        self._root = Node(ROOT, stat.S_IFDIR | 0o755)
        self._numbers = itertools.count(ROOT + 1)
        self._open: dict[int, Node] = {}

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        if name != FAILURE:
            raise mfusepy.FuseOSError(errno.ENOTSUP)
        self._left, self._code, self._lasts = map(int, value.split())
        return 0

    def _may_fail(self) -> None:
        if self._left:
            self._left -= 1
            if not self._left:
                self._left = self._lasts
                raise mfusepy.FuseOSError(self._code)

    def _find(self, path: str) -> Node:
        node = self._root
        for name in filter(None, path.split("/")):
            if name not in node.children:
                raise mfusepy.FuseOSError(errno.ENOENT)
            node = node.children[name]
        return node

    def _parent(self, path: str) -> tuple[Node, str]:
        folder, name = os.path.split(path)
        return self._find(folder), name

    def _make(self, path: str, mode: int) -> Node:
        self._may_fail()
        parent, name = self._parent(path)
        node = Node(next(self._numbers), mode)
        self._name(parent, name, node)
        return node

    def _name(self, parent: Node, name: str, node: Node | None) -> None:
        if node is None:
            parent.children.pop(name).links -= 1
        else:
            parent.children[name] = node
        number, is_folder = (node.number, stat.S_ISDIR(node.mode)) if node else (None, False)
        self._journal.name(parent.number, name, number, is_folder)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        node = self._open[fh] if fh in self._open else self._find(path)
        accessed, modified = node.times
        return {
            "st_ino": node.number,
            "st_mode": node.mode,
            "st_size": len(node.data),
            "st_nlink": max(node.links, 1),
            "st_atime": accessed,
            "st_mtime": modified,
            "st_ctime": modified,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
        }

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._find(path).children]

    def mkdir(self, path: str, mode: int) -> int:
        self._make(path, stat.S_IFDIR | mode)
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        node = self._make(path, stat.S_IFREG | (mode & 0o7777))
        self._open[node.number] = node
        return node.number

    def open(self, path: str, flags: int) -> int:
        node = self._find(path)
        self._open[node.number] = node
        return node.number

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self._open[fh].data[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._may_fail()
        node = self._open[fh]
        self._journal.write(node.number, offset, data)
        node.data.extend(bytes(max(0, offset - len(node.data))))
        node.data[offset : offset + len(data)] = data
        node.times = (node.times[0], time.time_ns())
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._may_fail()
        node = self._open[fh] if fh in self._open else self._find(path)
        self._journal.truncate(node.number, length)
        del node.data[length:]
        node.data.extend(bytes(length - len(node.data)))
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._may_fail()
        self._journal.sync(self._open[fh].number)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._may_fail()
        self._journal.sync(self._find(path).number)
        return 0

    def rename(self, old: str, new: str) -> int:
        self._may_fail()
        (source, old_name), (target, new_name) = self._parent(old), self._parent(new)
        node = source.children[old_name]
        self._name(target, new_name, node)
        node.links += 1
        self._name(source, old_name, None)
        return 0

    def link(self, target: str, source: str) -> int:
        self._may_fail()
        node = self._find(source)
        self._name(*self._parent(target), node)
        node.links += 1
        return 0

    def unlink(self, path: str) -> int:
        self._name(*self._parent(path), None)
        return 0

    def rmdir(self, path: str) -> int:
        if self._find(path).children:
            raise mfusepy.FuseOSError(errno.ENOTEMPTY)
        return self.unlink(path)

    def chmod(self, path: str, mode: int) -> int:
        node = self._find(path)
        node.mode = stat.S_IFMT(node.mode) | (mode & 0o7777)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self._find(path).times = times or (time.time_ns(),) * 2
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        return {
            "f_bsize": 4096,
            "f_frsize": 4096,
            "f_blocks": 1 << 20,
            "f_bfree": 1 << 20,
            "f_bavail": 1 << 20,
        }


def main(mount_point: str, journal: str, kind: str) -> None:
    disk = Disk(Journal(journal))
    mfusepy.FUSE(
        disk, mount_point, foreground=True, nothreads=True, use_ino=True, big_writes=True, subtype=kind
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
