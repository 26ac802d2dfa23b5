"""Searches the landing zone for a person, and deletes documents.

The landing zone belongs to its owner: manifests are never changed, and documents are deleted only on request.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kyc_pipeline.document_store import DocumentFile, DocumentProblem, FileIdentity, cause
from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.formats import read_manifest
from kyc_pipeline.ingest.formats.columns import LABEL_ROWS, ROW
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable, fails_alone
from kyc_pipeline.ingest.manifests import (
    is_made_from,
    list_labels,
    list_manifests,
    manifest_dates,
    require_mounted,
)
from kyc_pipeline.ingest.rows import identities
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.landing.opening import Root, open_landing
from kyc_pipeline.landing.zone import LABELS_FOLDER, ManifestFile
from kyc_pipeline.vocabulary import SUBMISSION_TAG


@dataclass(frozen=True, slots=True)
class LandingRow:
    """A row of a manifest, with every reading of its tags, including `submissionId`."""

    date: str
    """The manifest's day; `labels` for a label."""
    manifest: str
    row: int
    readings: Sequence[Mapping[str, str]] = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    """Its documents, relative to the documents folder."""

    def is_about(self, subjects: Callable[[Mapping[str, str]], bool]) -> bool:
        """Whether any reading matches the subjects."""
        return any(map(subjects, self.readings))


class LandingZone:
    """The landing zone at a root.

    `csv_encoding` is that of CSV manifests that are neither UTF-8 nor UTF-16.
    """

    def __init__(self, landing: Root, csv_encoding: str | None = None) -> None:
        self._csv_encoding = csv_encoding
        self._landing = open_landing(landing)
        self._folder = self._landing.documents
        self.unreadable: list[str] = []
        """What is wrong with each manifest that the last search could not read completely."""

    def require_mounted(self, lake: Lake) -> None:
        """Raises :class:`UsageError` if it is missing, or empty though the lake was made from it.

        Otherwise the search would say that a person has no rows and documents there.
        """
        require_mounted(self._landing, lake)

    def rows(self) -> Iterator[LandingRow]:
        """Every row of every manifest except byte-identical copies, in bounded memory."""
        self.unreadable = []
        for date in manifest_dates(self._landing):
            for manifest in list_manifests(self._landing, date).manifests:
                try:
                    yield from _rows(date, manifest.name, manifest.path, self._csv_encoding)
                except ManifestUnreadable as error:
                    self.unreadable.append(str(error))

    def labels(self) -> Iterator[LandingRow]:
        """Every row of every readable manifest of labels except byte-identical copies, in bounded memory."""
        for manifest in list_labels(self._landing).manifests:
            with contextlib.suppress(ManifestUnreadable):
                for chunk in read_manifest(manifest.path, Counter(), self._csv_encoding, LABEL_ROWS):
                    pairs = zip(
                        chunk[ROW].to_numpy().tolist(), chunk["submission_id"].to_pylist(), strict=True
                    )
                    for number, key in pairs:
                        readings = [{SUBMISSION_TAG: key.strip()}] if key else []
                        yield LandingRow(LABELS_FOLDER, manifest.name, number, readings, ())

    def is_ingested(self, lake: Lake, date: str) -> bool:
        """Whether the day's partitions were made from its current manifests."""
        return is_made_from(self._landing, lake, date)

    def identity(self, file: str) -> FileIdentity | None:
        """What identifies the document under all its names; None if it does not exist."""
        return self._folder.identity(file)

    def size(self, file: str) -> int | None:
        """The document's size in bytes; None if there is no such file inside the folder."""
        with _named("read"), contextlib.suppress(DocumentProblem), self._opened(file) as document:
            return document.size
        return None

    def sha256(self, file: str) -> str | None:
        """The SHA-256 (hex) of a document's bytes; None if there is no such file inside the folder.

        Raises :class:`KycError` if it cannot be read.
        """
        with _named("read"), contextlib.suppress(DocumentProblem), self._opened(file) as document:
            return hashlib.file_digest(document, "sha256").hexdigest()
        return None

    def _opened(self, file: str) -> DocumentFile:
        return self._folder.open(self._folder.resolve(file))

    def existing(self, files: Iterable[str]) -> dict[str, FileIdentity]:
        """Those of `files` that exist inside the documents folder."""
        names = list(files)
        with _named("searched"), ThreadPoolExecutor(self._folder.readers) as pool:
            found = zip(names, pool.map(self._folder.existing, names), strict=True)
            return {file: identity for file, identity in found if identity}

    def delete(self, files: Mapping[str, FileIdentity]) -> None:
        """Deletes documents unless another file took their place, and the symlinks that lead to them."""
        with _named("deleted"):
            for file, identity in files.items():
                self._folder.delete(file, identity)


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Explains that documents could not be searched, read or deleted, without naming one."""
    try:
        yield
    except OSError as error:
        raise KycError(
            f"documents cannot be {what} ({cause(error)}): correct that, and repeat the command"
        ) from error


def _rows(date: str, name: str, path: ManifestFile, csv_encoding: str | None) -> Iterator[LandingRow]:
    for chunk in read_manifest(path, Counter(), csv_encoding):
        numbers = chunk[ROW].to_numpy()
        with fails_alone(path):
            pairs = zip(chunk["id_file"].to_pylist(), chunk["selfie_file"].to_pylist(), strict=True)
            people = list(identities(chunk))
        for number, readings, pair in zip(numbers, people, pairs, strict=True):
            yield LandingRow(date, name, int(number), readings, tuple(file for file in pair if file))
