"""The one way to replace a file: a locked draft beside it, synced, then renamed.

A reader sees the old file or the new one, never a part of one; a crash or a power cut leaves the old one.
A writer holds a lock (`flock`) on its draft while it works. So a draft that can be locked is stale: its
writer crashed. A process id does not tell that, since other hosts and containers number their own.
"""

import contextlib
import fcntl
import glob
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import IO, Final, TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

DRAFT_PREFIX: Final = ".draft-"
"""Drafts have hidden names: no reader's glob matches them."""


@contextlib.contextmanager
def replacing(
    target: StrPath, *, mode: int = 0o666, keep_existing: bool = False, durable: bool = True
) -> Iterator[IO[bytes]]:
    """A file to write to. It replaces `target` when the block ends without an error, and else is removed.

    `mode` is that of a new file, less the umask. With `keep_existing`, a target that another process made
    meanwhile stays. Without `durable`, the file need not survive a power cut. Raises :class:`OSError`.
    """
    with new_draft(target, mode) as draft:
        yield draft
        draft.flush()
        if keep_existing:
            os.fsync(draft.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft.name, target)
        elif durable:
            move_into_place(draft.name, target)
        else:
            os.replace(draft.name, target)


@contextlib.contextmanager
def new_draft(target: StrPath, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A new, locked file beside `target`; `name` is its path. It is removed at the end.

    What is not written as a stream, such as a database, is written in the folder :func:`draft_folder`
    beside the draft, which is removed with it.
    """
    draft = _locked(target, mode)
    try:
        yield draft
    finally:
        # A draft that cannot be removed now is stale as soon as it is closed.
        with contextlib.suppress(OSError):
            _remove(draft.name)
        with contextlib.suppress(OSError):  # what is left in the buffer may find no room
            draft.close()


def draft_folder(draft: str) -> str:
    """The folder that belongs to a draft."""
    return f"{draft}.d"


def move_into_place(path: StrPath, target: StrPath) -> None:
    """Renames a finished file over `target` so that a power cut leaves the old file or all of the new one."""
    sync(path)
    os.replace(path, target)
    sync(os.path.dirname(target) or ".")


def sync(path: StrPath) -> None:
    """Makes a file's content, or a rename in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drafts_of(target: StrPath) -> str:
    """A glob pattern that matches the drafts of `target`."""
    folder, name = os.path.split(os.fspath(target))
    return os.path.join(glob.escape(folder), f"{DRAFT_PREFIX}*-{glob.escape(name)}")


def remove_drafts(pattern: str, *, older_than: float = math.inf) -> int:
    """Removes stale drafts that match the glob `pattern`; returns their number.

    Only those last written before `older_than` (seconds since the epoch).
    """
    removed = 0
    for path in glob.iglob(pattern):
        # Opened for writing, since NFS grants an exclusive lock only then.
        with contextlib.suppress(FileNotFoundError, BlockingIOError), open(path, "r+b") as draft:
            fcntl.flock(draft, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(draft.fileno()).st_mtime < older_than:
                _remove(path)
                removed += 1
    return removed


def _locked(target: StrPath, mode: int) -> IO[bytes]:
    folder, name = os.path.split(os.fspath(target))
    while True:
        path = os.path.join(folder, f"{DRAFT_PREFIX}{secrets.token_hex(8)}-{name}")
        draft = open(path, "xb", opener=lambda file, flags: os.open(file, flags, mode))  # noqa: SIM115
        fcntl.flock(draft, fcntl.LOCK_EX)
        if os.path.exists(path):
            return draft
        draft.close()  # removed as stale by another process before it was locked


def _remove(draft: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(draft_folder(draft))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
