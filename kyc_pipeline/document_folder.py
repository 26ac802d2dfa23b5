"""Opens documents of the landing zone safely: a path comes from a manifest, and files may change at any time.

* Symlinks may be used below the folder: `resolve` follows them and refuses a path that leads out. Opening
  then follows none: it opens each folder on the way relative to the one before, so a link that somebody puts
  there after `resolve` is an error, wherever it leads. (Linux has `openat2` for this; the walk works on other
  systems too, and where a container forbids that call.) A hard link is a file like any other.
* Only regular files are read. A pipe or a device is opened without waiting, and refused.
* What is sent is what ingest accepted: :class:`AcceptedDocument` compares size and hash with the bytes read.
"""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kyc_pipeline.vocabulary import Reason

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# O_PATH needs no permission to list the folder; systems without it open the folder for reading.
_FOLDER: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_NOT_THERE: Final = {
    errno.EACCES: "cannot be opened",
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.ENXIO),
        "does not exist",
    ),
}
_CHANGED: Final = "the file has changed since it was accepted"


class DocumentProblem(Exception):
    """A document cannot be used. The text says why, without the path, since that may name a person."""

    def __init__(self, text: str, reason: Reason | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        """Why ingest rejects its row; None if it was found only after ingest."""


class DocumentFolder:
    """The folder that holds all documents. It may itself be a symlink."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.realpath(root)

    def __repr__(self) -> str:
        return f"DocumentFolder({self._root!r})"

    def resolve(self, path: str) -> str:
        """The same file's path without links and `..`, relative to the folder.

        Raises :class:`DocumentProblem` if it leads out of the folder. The file need not exist.
        """
        if not os.path.isabs(path) and "\0" not in path:
            try:
                file = os.path.realpath(os.path.join(self._root, path))
            except OSError:  # a link vanished while it was read
                raise DocumentProblem("the path is being changed", Reason.FILE_NOT_FOUND) from None
            inside = os.path.join(self._root, "")
            if file.startswith(inside):
                return file.removeprefix(inside)
        raise DocumentProblem(
            "the path must lead to a file inside the documents folder", Reason.PATH_OUTSIDE_DOCUMENTS
        )

    def open(self, resolved: str) -> io.BufferedReader:
        """Opens a regular file for reading. `resolved` is a result of `resolve`.

        Raises :class:`DocumentProblem` if there is no such file, OSError if the storage fails.
        """
        try:
            file = self._descriptor(resolved)
        except OSError as error:
            if why := _NOT_THERE.get(error.errno or 0):
                raise DocumentProblem(f"the file {why}", Reason.FILE_NOT_FOUND) from None
            raise
        if stat.S_ISREG(os.fstat(file).st_mode):
            return os.fdopen(file, "rb")
        os.close(file)
        raise DocumentProblem("the path is not a file", Reason.FILE_NOT_FOUND)

    def _descriptor(self, resolved: str) -> int:
        *folders, name = resolved.split(os.sep)
        here = os.open(self._root, _FOLDER)
        try:
            for folder in folders:
                below = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
                os.close(here)
                here = below
            return os.open(name, _READ, dir_fd=here)
        finally:
            os.close(here)


@dataclass(frozen=True, slots=True)
class AcceptedDocument:
    """A document as ingest accepted it. Its media type is that of the bytes with this hash."""

    folder: DocumentFolder = field(repr=False)
    path: str | Path = field(repr=False)
    size: int
    sha256: str = field(repr=False)
    content_type: str

    def read(self, into: memoryview) -> None:
        """Fills `into`, which has `size` bytes. Raises as `chunks` does."""
        with self._opened() as file:
            file.readinto(into)
        self._compare(hashlib.sha256(into))

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yields the content. Ends without an error only if it is what was accepted.

        Raises :class:`DocumentProblem`, or OSError if the storage fails.
        """
        digest = hashlib.sha256()
        left = self.size
        with self._opened() as file:
            while data := file.read(min(left, chunk_bytes)):
                digest.update(data)
                left -= len(data)
                yield data
        self._compare(digest)

    def _opened(self) -> io.BufferedReader:
        file = self.folder.open(self.folder.resolve(os.fspath(self.path)))
        if os.fstat(file.fileno()).st_size == self.size:
            return file
        file.close()
        raise DocumentProblem(_CHANGED)

    def _compare(self, digest: "hashlib._Hash") -> None:
        if digest.hexdigest() != self.sha256:
            raise DocumentProblem(_CHANGED)
