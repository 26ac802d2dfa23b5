"""What is sent of a submission: the allowed tags, and the documents, without metadata if so configured."""

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from kyc_pipeline.deepxl.multipart import Sendable
from kyc_pipeline.document_store import CHANGED, AcceptedDocument, DocumentProblem, DocumentStore
from kyc_pipeline.image_metadata import REMOVERS, CannotRemove, without_metadata
from kyc_pipeline.lake.sent import UNCHANGED, SentContent, only
from kyc_pipeline.settings import Settings

_CHUNK_BYTES: Final = 1 << 17
_MAX_HUNG: Final = 64
"""So many reads may hang, for example on a dead network share, before the others fail too."""


@dataclass(frozen=True, slots=True)
class Package:
    """What is sent of one submission. `sent` says how it differs from the submission."""

    id_file: Sendable = field(repr=False)
    selfie_file: Sendable = field(repr=False)
    tags: Mapping[str, str] = field(repr=False)
    sent: SentContent = field(repr=False)


class Outgoing:
    """Packs submissions as the settings say."""

    def __init__(self, documents: DocumentStore, settings: Settings) -> None:
        self._documents = documents
        self._tags = settings.kyc_send_tags
        self._strips = settings.kyc_strip_metadata
        self._timeout_seconds = settings.deepxl_timeout_seconds
        # Not asyncio's own threads, in which others wait. The time of a document begins with its turn.
        self._turns = asyncio.Semaphore(documents.readers)
        self._threads = ThreadPoolExecutor(documents.readers + _MAX_HUNG, "outgoing")

    async def package(self, row: Mapping[str, Any]) -> Package:
        """What is sent of `row`, a row of `submissions`.

        With `KYC_STRIP_METADATA` it reads the documents, in a thread. A document whose metadata cannot be
        removed raises :class:`DocumentProblem` when it is read.
        """
        accepted = [
            AcceptedDocument(
                self._documents,
                row[f"{side}_file"],
                size=row[f"{side}_size"],
                sha256=row[f"{side}_sha256"],
                content_type=row[f"{side}_content_type"],
            )
            for side in ("id", "selfie")
        ]
        id_file, selfie_file = [await self._stripped(each) for each in accepted] if self._strips else accepted
        tags = dict(row["tags"])
        allowed = only(tags, self._tags)
        return Package(
            id_file,
            selfie_file,
            allowed,
            SentContent(
                tags=None if len(allowed) == len(tags) else tuple(allowed),
                id=_difference(id_file),
                selfie=_difference(selfie_file),
            ),
        )

    async def _stripped(self, accepted: AcceptedDocument) -> Sendable:
        loop = asyncio.get_running_loop()
        try:
            async with self._turns, asyncio.timeout(self._timeout_seconds):
                return await loop.run_in_executor(self._threads, _stripped, accepted)
        except TimeoutError:
            return _Unsendable(DocumentProblem("it could not be read in time"), accepted.content_type)

    async def possible(self, row: Mapping[str, Any]) -> list[SentContent]:
        """What an unknown earlier call may have sent: everything, or what the settings say now."""
        return list(dict.fromkeys([UNCHANGED, (await self.package(row)).sent]))


@dataclass(frozen=True, slots=True)
class StrippedDocument:
    """An accepted document without its metadata; size and hash are those of what is sent."""

    accepted: AcceptedDocument
    size: int
    sha256: str = field(repr=False)

    @property
    def content_type(self) -> str:
        """Its media type."""
        return self.accepted.content_type

    def read(self, into: memoryview) -> None:
        """Fills `into`, which has `size` bytes. Raises as `chunks` does."""
        at = 0
        for chunk in self.chunks(_CHUNK_BYTES):
            into[at : at + len(chunk)] = chunk
            at += len(chunk)

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yields the content. Ends without an error only if the source is the accepted document.

        Raises :class:`DocumentProblem`, or OSError if the storage fails.
        """
        left = self.size
        for chunk in _without_metadata(self.accepted, chunk_bytes):
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
        if left:  # the accepted document has changed, or its hash would have raised
            raise DocumentProblem(CHANGED)


@dataclass(frozen=True, slots=True)
class _Unsendable:
    """A document that cannot be sent: reading it raises why."""

    problem: DocumentProblem | OSError
    content_type: str
    size: int = 0

    def read(self, _: memoryview) -> None:
        raise self.problem

    def chunks(self, _: int) -> Iterator[bytes]:
        raise self.problem


def _stripped(accepted: AcceptedDocument) -> Sendable:
    """The document without metadata; itself if it has none, or if its media type is not one of `REMOVERS`."""
    if accepted.content_type not in REMOVERS:
        return accepted
    digest = hashlib.sha256()
    size = 0
    try:
        for chunk in _without_metadata(accepted, _CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    except (DocumentProblem, OSError) as problem:
        return _Unsendable(problem, accepted.content_type)
    sha256 = digest.hexdigest()
    return accepted if sha256 == accepted.sha256 else StrippedDocument(accepted, size, sha256)


def _without_metadata(accepted: AcceptedDocument, chunk_bytes: int) -> Iterator[bytes]:
    try:
        yield from without_metadata(accepted.chunks(chunk_bytes), accepted.content_type)
    except CannotRemove as problem:
        raise DocumentProblem(f"its metadata cannot be removed (KYC_STRIP_METADATA): {problem}") from None


def _difference(document: Sendable) -> tuple[str, int] | None:
    return (document.sha256, document.size) if isinstance(document, StrippedDocument) else None
