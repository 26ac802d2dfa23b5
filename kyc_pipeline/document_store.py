"""Opens documents of the landing zone safely: a path comes from a manifest, and files may change at any time.

* Symlinks may be used below the folder: `resolve` follows them and refuses a path that leads out. Opening
  then follows none: it opens each folder on the way relative to the one before, so a link that somebody puts
  there after `resolve` is an error, wherever it leads. (Linux has `openat2` for this; the walk works on other
  systems too, and where a container forbids that call.) A hard link is a file like any other.
* Only regular files are read. A pipe or a device is opened without waiting, and refused.
* What is sent is what ingest accepted: :class:`AcceptedDocument` compares size and hash with the bytes read.
"""

import contextlib
import errno
import hashlib
import io
import os
import stat
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol, TypeAlias

from kyc_pipeline.errors import UsageError
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
FileIdentity: TypeAlias = Hashable
"""In a folder, device and inode."""
CHANGED: Final = "the file has changed since it was accepted"


class StoreError(OSError):
    """An error of S3. `strerror` says in one line what failed, without a key."""


def cause(error: OSError) -> str:
    """The cause of a storage error, for messages, which must not name a file."""
    return str(error.strerror) if isinstance(error, StoreError) else type(error).__name__


class DocumentProblem(Exception):
    """A document cannot be used. The text says why, without the path, since that may name a person."""

    def __init__(self, text: str, reason: Reason | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        """Why ingest rejects its row; None if it was found only after ingest."""


class DocumentFile(io.BufferedReader):
    """An open document. `size` is in bytes."""

    def __init__(self, raw: io.RawIOBase, size: int) -> None:
        super().__init__(raw)
        self.size = size


class DocumentStore(Protocol):
    """Where documents are: a folder (:class:`DocumentFolder`) or S3."""

    readers: ClassVar[int]
    """How many documents to read at once."""

    def require_mounted(self) -> None:
        """Raises :class:`UsageError` if there are no documents at all."""

    def resolve(self, path: str) -> str:
        """The place of a document, as `open` takes it. Raises :class:`DocumentProblem` if it is outside."""

    def open(self, resolved: str) -> DocumentFile:
        """Raises :class:`DocumentProblem` if there is no such file, OSError if the storage fails.

        So does reading the file.
        """

    def identity(self, path: str) -> FileIdentity | None:
        """What identifies a file under all its names; None if there can be no such file."""

    def existing(self, path: str) -> FileIdentity | None:
        """The identity of a file that is there, for `delete`; None if there is no such file."""

    def delete(self, path: str, identity: FileIdentity) -> None:
        """Deletes the file at `path`, unless it is another file now. Raises OSError if the storage fails."""


class DocumentFolder:
    """The folder that holds all documents. It may itself be a symlink."""

    readers: ClassVar[int] = min(4, os.cpu_count() or 1)

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.realpath(root)

    def __repr__(self) -> str:
        return f"DocumentFolder({self._root!r})"

    def require_mounted(self) -> None:
        """Raises :class:`UsageError` if the folder is missing or empty: then every document seems to be gone.

        Probably its volume is not mounted, which is not a fault of the rows.
        """
        try:
            with os.scandir(self._root) as entries:
                if next(entries, None) is not None:
                    return
            what = "is empty"
        except (FileNotFoundError, NotADirectoryError):
            what = "is not a folder"
        raise UsageError(
            f"KYC_LANDING: {self._root} {what}: mount its volume, or put the documents there; "
            "keep one empty file in it if they were all removed"
        )

    def resolve(self, path: str) -> str:
        """`path` without links and `..`, relative to the folder.

        Raises :class:`DocumentProblem` if it leads out of the folder. The file need not exist.
        """
        if not os.path.isabs(path) and "\0" not in path:
            try:
                file = os.path.realpath(os.path.join(self._root, path))
            except OSError:  # it was removed while it was read
                raise DocumentProblem("a link in the path vanished", Reason.FILE_NOT_FOUND) from None
            inside = os.path.join(self._root, "")
            if file.startswith(inside):
                return file.removeprefix(inside)
        raise DocumentProblem(
            "the path must lead to a file inside the documents folder", Reason.PATH_OUTSIDE_DOCUMENTS
        )

    def open(self, resolved: str) -> DocumentFile:
        """Opens a regular file for reading. `resolved` is a result of `resolve`.

        Raises :class:`DocumentProblem` if there is no such file, OSError if the storage fails.
        """
        try:
            file = self._descriptor(resolved)
        except OSError as error:
            if why := _NOT_THERE.get(error.errno or 0):
                raise DocumentProblem(f"the file {why}", Reason.FILE_NOT_FOUND) from None
            raise
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode):
            return DocumentFile(io.FileIO(file), status.st_size)
        os.close(file)
        raise DocumentProblem("the path is not a file", Reason.FILE_NOT_FOUND)

    def identity(self, path: str) -> FileIdentity | None:
        """What identifies a file under all its names (links, spellings); None if there is no such file.

        It takes a path as `resolve` does: `x/../a.jpg` is `a.jpg`, even without a folder `x`.
        """
        try:
            status = os.stat(os.path.realpath(os.path.join(self._root, path)))
        except (OSError, ValueError):  # ValueError: NUL in the name
            return None
        return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None

    def existing(self, path: str) -> FileIdentity | None:
        """The identity of a file inside the folder."""
        with contextlib.suppress(DocumentProblem):
            self.resolve(path)
            return self.identity(path)
        return None

    def delete(self, path: str, identity: FileIdentity) -> None:
        """Deletes the file at `path`, and `path` itself if it is a symlink, unless it is another file now."""
        try:
            resolved = self.resolve(path)
        except DocumentProblem:
            return
        if self.identity(path) not in (identity, None):
            return
        with contextlib.suppress(FileNotFoundError), self._parent(resolved) as (folder, name):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if (status.st_dev, status.st_ino) == identity:
                os.unlink(name, dir_fd=folder)
        link = os.path.normpath(os.path.join(self._root, path))
        if os.path.islink(link) and not os.path.exists(link) and self.resolve(path) == resolved:
            os.unlink(link)

    def _descriptor(self, resolved: str) -> int:
        with self._parent(resolved) as (folder, name):
            return os.open(name, _READ, dir_fd=folder)

    @contextlib.contextmanager
    def _parent(self, resolved: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that holds the file, and its name there. Follows no links."""
        *folders, name = resolved.split(os.sep)
        here = os.open(self._root, _FOLDER)
        try:
            for folder in folders:
                below = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
                os.close(here)
                here = below
            yield here, name
        finally:
            os.close(here)


@dataclass(frozen=True, slots=True)
class AcceptedDocument:
    """A document as ingest accepted it. Its media type is that of the bytes with this hash."""

    folder: DocumentStore = field(repr=False)
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
        if file.size == self.size:
            return file
        file.close()
        raise DocumentProblem(CHANGED)

    def _compare(self, digest: "hashlib._Hash") -> None:
        if digest.hexdigest() != self.sha256:
            raise DocumentProblem(CHANGED)
