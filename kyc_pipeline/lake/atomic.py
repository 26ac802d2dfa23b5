"""Replaces a file atomically: writes a locked draft beside it, syncs it and renames it.

A reader sees the old file or the new one, never a part of one; a crash or a power cut leaves the old one.
A writer holds an `flock` on its draft, so a draft that can be locked is stale: its writer crashed. A process
id would not show that, since each host and container numbers its own processes.
"""

import contextlib
import fcntl
import filecmp
import glob
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from typing import IO, Final, TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

DRAFT_PREFIX: Final = ".draft-"
"""Drafts have hidden names: no reader's glob matches them."""


@contextlib.contextmanager
def replacing(
    target: StrPath,
    *,
    mode: int = 0o666,
    keep_existing: bool = False,
    keep_identical: bool = False,
    durable: bool = True,
    confirm: Callable[[], None] = lambda: None,
) -> Iterator[IO[bytes]]:
    """Yields a file that replaces `target` if the block succeeds, and is removed if it fails.

    A new file gets `mode` minus the umask. `keep_existing` keeps a target that another process created first;
    `keep_identical` keeps one with the same content, so that nothing seems to have changed.
    `durable=False` skips the sync, so that a power cut may lose the file. `confirm` is called when the new
    file is complete, just before it replaces the target; if it raises, the target stays. Raises
    :class:`OSError`.
    """
    with new_draft(target, mode) as draft:
        yield draft
        draft.flush()
        if keep_existing:
            os.fsync(draft.fileno())
            confirm()
            with contextlib.suppress(FileExistsError):
                os.link(draft.name, target)
            sync(os.path.dirname(target) or ".")
        elif keep_identical and _have_same_content(draft.name, target):
            return
        elif durable:
            move_into_place(draft.name, target, confirm)
        else:
            confirm()
            os.replace(draft.name, target)


@contextlib.contextmanager
def new_draft(target: StrPath, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Yields a new, locked file beside `target` and removes it when the block ends. `name` is its path.

    Output that is not a stream, such as a database, goes into the folder :func:`draft_folder`, which is
    removed with the draft.
    """
    draft = _create_locked(target, mode)
    try:
        yield draft
    finally:
        # A draft that cannot be removed now is stale once closed, so a later clean-up removes it.
        with contextlib.suppress(OSError):
            _remove(draft.name)
        with contextlib.suppress(OSError):  # the disk may be too full for the buffer
            draft.close()


def draft_folder(draft: str) -> str:
    """The folder that belongs to a draft."""
    return f"{draft}.d"


def move_into_place(path: StrPath, target: StrPath, confirm: Callable[[], None] = lambda: None) -> None:
    """Renames a finished file over `target`; a power cut leaves the old file or the whole new one.

    `confirm` is called just before.
    """
    sync(path)
    confirm()
    os.replace(path, target)
    sync(os.path.dirname(target) or ".")


def make_folder(path: StrPath) -> None:
    """Makes a folder and its parents where they are missing; a power cut does not undo it."""
    missing = []
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    os.makedirs(path, exist_ok=True)
    for made in missing:
        sync(os.path.dirname(made))


def sync(path: StrPath) -> None:
    """Flushes a file's content, or the renames in a folder, to disk."""
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
    """Removes stale drafts that match the glob `pattern`; returns how many.

    `older_than`: only drafts last modified before this time, in seconds since the epoch.
    """
    removed = 0
    for path in glob.iglob(pattern):
        # NFS grants an exclusive lock only on a file opened for writing.
        with contextlib.suppress(FileNotFoundError, BlockingIOError), open(path, "r+b") as draft:
            fcntl.flock(draft, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(draft.fileno()).st_mtime < older_than:
                _remove(path)
                removed += 1
    return removed


def revoke_drafts(target: StrPath) -> None:
    """Removes all drafts of `target`: whoever writes one can no longer replace the file.

    Call it only with the right to be the target's sole writer, such as the lease of its day.
    """
    for path in glob.iglob(drafts_of(target)):
        with contextlib.suppress(FileNotFoundError):
            _remove(path)


def _create_locked(target: StrPath, mode: int) -> IO[bytes]:
    folder, name = os.path.split(os.fspath(target))
    while True:
        path = os.path.join(folder, f"{DRAFT_PREFIX}{secrets.token_hex(8)}-{name}")
        draft = open(path, "xb", opener=lambda file, flags: os.open(file, flags, mode))  # noqa: SIM115
        fcntl.flock(draft, fcntl.LOCK_EX)
        if os.path.exists(path):
            return draft
        draft.close()  # removed as stale by another process before it was locked


def _have_same_content(draft: str, target: StrPath) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return filecmp.cmp(draft, target, shallow=False)
    return False


def _remove(draft: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(draft_folder(draft))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
