"""Searches the landing zone for a person, and deletes documents.

The landing zone belongs to its owner: manifests are never changed, and documents are deleted only on request.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kyc_pipeline.document_folder import DocumentFolder, DocumentProblem
from kyc_pipeline.ingest.formats import ROW, ManifestUnreadable, fails_alone, read_manifest
from kyc_pipeline.ingest.manifests import is_made_from, list_manifests, manifest_dates
from kyc_pipeline.ingest.rows import identities
from kyc_pipeline.lake.storage import Lake


@dataclass(frozen=True, slots=True)
class LandingRow:
    """A row of a manifest, with every reading of its tags, including `submissionId`."""

    date: str
    manifest: str
    row: int
    readings: Sequence[Mapping[str, str]] = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    """Its documents, relative to the documents folder."""

    def is_about(self, subjects: Callable[[Mapping[str, str]], bool]) -> bool:
        """Whether any reading matches the subjects."""
        return any(map(subjects, self.readings))


class LandingZone:
    """The landing zone at a path. If the folder does not exist, there are no rows and no documents."""

    def __init__(self, landing: Path) -> None:
        self._landing = landing
        self._documents = landing / "documents"
        self.unreadable = 0
        """Number of manifests that the last search could not read completely."""

    def rows(self) -> Iterator[LandingRow]:
        """Every row of every manifest except byte-identical copies, in bounded memory."""
        self.unreadable = 0
        for date in manifest_dates(self._landing):
            for manifest in list_manifests(self._landing, date).manifests:
                try:
                    yield from _rows(date, manifest.name, manifest.path)
                except ManifestUnreadable:
                    self.unreadable += 1

    def is_ingested(self, lake: Lake, date: str) -> bool:
        """Whether the day's partitions were made from its current manifests."""
        return is_made_from(self._landing, lake, date)

    def existing(self, files: Iterable[str]) -> list[str]:
        """Those of `files` that exist inside the documents folder."""
        return [file for file in files if self._resolve(file) is not None]

    def delete(self, files: Iterable[str]) -> None:
        """Deletes documents, and the symlinks that lead to them."""
        for file in files:
            path = self._resolve(file)
            if path is not None:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                    (self._documents / file).unlink()

    def _resolve(self, file: str) -> Path | None:
        try:
            path = self._documents.resolve() / DocumentFolder(self._documents).resolve(file)
            return path if path.is_file() else None
        except (DocumentProblem, OSError):  # OSError: a name that is too long
            return None


def _rows(date: str, name: str, path: Path) -> Iterator[LandingRow]:
    for chunk in read_manifest(path, Counter()):
        numbers = chunk[ROW].to_numpy()
        with fails_alone(path):
            pairs = zip(chunk["id_file"].to_pylist(), chunk["selfie_file"].to_pylist(), strict=True)
            people = list(identities(chunk))
        for number, readings, pair in zip(numbers, people, pairs, strict=True):
            yield LandingRow(date, name, int(number), readings, tuple(file for file in pair if file))
