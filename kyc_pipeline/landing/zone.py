"""The interface of a landing zone, in a folder or in S3."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import BinaryIO, Final, Literal, Protocol, TypeAlias

from kyc_pipeline.document_store import DocumentStore

LABELS_FOLDER: Final = "labels"
"""The folder of the manifests of labels."""
Signature: TypeAlias = tuple[int | str, ...]
"""Changes when a file is written to. Getting it reads no content."""


class ManifestFile(Protocol):
    """A file below `manifests/<date>/`, `labels/` or `relationships/`, with what its readers need.

    A `Path` is one.
    """

    @property
    def name(self) -> str:
        """The file's name."""

    @property
    def parent(self) -> PurePath:
        """The folder, whose name is the day, `labels` or `relationships`."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        """Opens it for reading, with `seek`. Raises :class:`OSError`."""


FolderEntry: TypeAlias = tuple[ManifestFile, Signature | None]
"""A file and its signature, which is None for anything but a regular file, such as a folder or a pipe."""


class Landing(Protocol):
    """A landing zone. `str()` names the place for messages.

    Its methods raise :class:`OSError` if the storage fails. A file may have been replaced since it was
    listed.
    """

    @property
    def documents(self) -> DocumentStore:
        """The documents."""

    def problem(self) -> str | None:
        """Why there is no landing zone at this place; None if there is one."""

    def folders(self) -> list[str]:
        """The names of the folders below `manifests/`, in order."""

    def loose_files(self) -> list[str]:
        """The names of the files directly below `manifests/`, in order."""

    def entries(self, date: str) -> Iterator[FolderEntry]:
        """The content of the folder `manifests/<date>/`, in any order; nothing without a folder."""

    def labels(self) -> Iterator[FolderEntry]:
        """The content of the folder `labels/`, in any order; nothing without a folder."""

    def signature(self, file: ManifestFile) -> Signature | None:
        """The file's signature now; None if it is gone."""

    def relationships(self) -> list[ManifestFile]:
        """The files `relationships/*.csv`, in order."""

    def snapshot(self) -> "Landing":
        """The same landing zone with cheap listings: if each would be a request, they are cached."""
