"""A landing zone in a folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from kyc_pipeline.document_store import DocumentFolder
from kyc_pipeline.landing.zone import LABELS_FOLDER, FolderEntry, ManifestFile, Signature


class LocalLanding:
    """The landing zone at a path."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._manifests = root / "manifests"

    def __str__(self) -> str:
        return str(self._root)

    @property
    def documents(self) -> DocumentFolder:
        """The documents."""
        return DocumentFolder(self._root / "documents")

    def problem(self) -> str | None:
        """Why there is no landing zone here. Probably its volume is not mounted."""
        if self._root.is_dir():
            return None
        return "is not a folder: mount its volume, create it, or set KYC_LANDING"

    def folders(self) -> list[str]:
        """The names of the folders below `manifests/`, in order."""
        if not self._manifests.is_dir():
            return []
        return sorted(entry.name for entry in self._manifests.iterdir() if entry.is_dir())

    def loose_files(self) -> list[str]:
        """The names of the files directly below `manifests/`, in order."""
        return sorted(path.name for path, _ in self._entries(self._manifests) if not path.is_dir())

    def entries(self, date: str) -> Iterator[FolderEntry]:
        """The content of the day's folder."""
        return self._entries(self._manifests / date)

    def labels(self) -> Iterator[FolderEntry]:
        """The content of the folder `labels/`."""
        return self._entries(self._root / LABELS_FOLDER)

    def _entries(self, folder: Path) -> Iterator[tuple[Path, Signature | None]]:
        for path in folder.iterdir() if folder.is_dir() else ():
            # A pipe or a device would block the reader forever.
            yield path, self.signature(path) if path.is_file() else None

    def signature(self, file: ManifestFile) -> Signature | None:
        """Size, modification time in nanoseconds and inode: one changes when a file is written to."""
        with contextlib.suppress(FileNotFoundError):
            status = cast("Path", file).stat()
            return status.st_size, status.st_mtime_ns, status.st_ino
        return None

    def relationships(self) -> list[ManifestFile]:
        """The files `relationships/*.csv`, in order."""
        # Not `glob`, which takes a folder that it may not list as empty.
        entries = self._entries(self._root / "relationships")
        return [*sorted(path for path, _ in entries if path.name.lower().endswith(".csv"))]

    def snapshot(self) -> "LocalLanding":
        """Itself: listing a folder is fast."""
        return self
