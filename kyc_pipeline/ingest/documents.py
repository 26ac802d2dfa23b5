"""Examines documents: hashes them and decides whether they can be sent.

The content decides, never the file name. `images.py` decodes images to their end.
"""

import hashlib
import itertools
import unicodedata
from collections import OrderedDict
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from kyc_pipeline.document_store import DocumentFile, DocumentProblem, DocumentStore, cause
from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.images import PILLOW_FORMATS, image_problem
from kyc_pipeline.media_types import HEAD_BYTES, media_type
from kyc_pipeline.vocabulary import DOCUMENT_TYPES, DocumentType, Reason
from kyc_pipeline.wording import invisible

MAX_BYTES: Final = 50_000_000
"""The vendor's limit is "50 MB"; the decimal reading is the safe one."""
CACHE_SIZE: Final = 65_536
_ROOT: Final = "documents/"
_KNOWN_TYPES: Final = frozenset(DocumentType)


class Role(Enum):
    """A document's role. The value is what its media type may begin with."""

    ID = ("image/", "application/")
    SELFIE = ("image/", "video/")


@dataclass(frozen=True, slots=True)
class Document:
    """The result of examining one file. `problem` is why it cannot be sent in any role."""

    sha256: str | None = None
    size: int | None = None
    content_type: str | None = None
    problem: Reason | None = None
    detail: str | None = None

    def fits(self, role: Role) -> bool:
        """Whether the media type is one that `role` may have."""
        kind = self.content_type
        return kind is not None and kind in _KNOWN_TYPES and kind.startswith(role.value)

    def problem_as(
        self, role: Role, field: str, types: Collection[str] = DOCUMENT_TYPES
    ) -> tuple[Reason, str] | None:
        """Why the file that `field` names cannot be sent in `role`: a reason and its detail, or None.

        `types` are the media types that DeepXL takes.
        """
        if self.problem is not None:
            return self.problem, f"{field}: {self.detail}"
        kind = self.content_type or "an unknown type"
        if self.fits(role) and kind in types:
            return None
        why = "not among DEEPXL_DOCUMENT_TYPES" if self.fits(role) else "not accepted"
        return Reason.UNSUPPORTED_FILE_TYPE, f"{field}: the content is {kind}, which is {why}"


class Documents:
    """Examines documents in a bounded thread pool, and caches the results.

    `types` are the media types that DeepXL takes.
    """

    def __init__(self, folder: DocumentStore, types: Collection[str] = DOCUMENT_TYPES) -> None:
        self.types_of_roles: set[str] = set()
        """The media types so far that `types` accepted or rejected."""
        self._types = types
        self._folder = folder
        self._cache: OrderedDict[str, Document] = OrderedDict()
        self._pool = ThreadPoolExecutor(folder.readers, "kyc-documents")

    def __enter__(self) -> "Documents":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def examine(self, paths: Iterable[str]) -> dict[str, Document]:
        """Examines `paths`, which are relative to the documents folder; returns the results by path.

        Raises :class:`KycError` if the storage itself fails, which is not a fault of the row.
        """
        results: dict[str, Document] = {}
        resolved: dict[str, str] = {}
        for path in set(paths):
            try:
                resolved[path] = self._folder.resolve(path)
            except DocumentProblem as problem:
                results[path] = _refused(problem)
        files = set(resolved.values())
        known = {file: self._cache[file] for file in files & self._cache.keys()}
        unknown = sorted(files - known.keys())
        examined = self._pool.map(lambda file: examine_file(self._folder, file), unknown)
        for file, document in zip(unknown, examined, strict=True):
            known[file] = self._cache[file] = document
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        results |= {path: known[file] for path, file in resolved.items()}
        return {path: self._explained(path, document) for path, document in results.items()}

    def problem_as(self, role: Role, field: str, document: Document) -> tuple[Reason, str] | None:
        """As :meth:`Document.problem_as`."""
        if document.problem is None and document.content_type is not None and document.fits(role):
            self.types_of_roles.add(document.content_type)
        return document.problem_as(role, field, self._types)

    def _explained(self, path: str, document: Document) -> Document:
        """If the file is not found: what may be wrong with the path, since a reader may not see it."""
        if document.problem is not Reason.FILE_NOT_FOUND:
            return document
        if "\\" in path:
            hint = "separate folders by / and not by a backslash"
        elif path != path.strip():
            hint = "the path begins or ends with a blank"
        elif hidden := invisible(path):
            hint = f"the path has {hidden}"
        elif any(map(self._exists, _other_forms(path))):
            hint = "a file exists whose name looks the same (Unicode NFC and NFD): use its exact name"
        elif path != path.lower() and self._exists(path.lower()):
            hint = "a file exists whose name is in lower case: use its exact name"
        elif path.startswith(_ROOT) and self._exists(path.removeprefix(_ROOT)):
            hint = f"the path is relative to the documents folder: leave out {_ROOT}"
        else:
            return document
        return replace(document, detail=f"{document.detail}: {hint}")

    def _exists(self, path: str) -> bool:
        try:
            self._folder.open(self._folder.resolve(path)).close()
        except (DocumentProblem, OSError):
            return False
        return True


def _other_forms(path: str) -> set[str]:
    """The other spellings of `path` in Unicode's forms NFC and NFD, which folders and names may mix."""
    folder, slash, name = path.rpartition("/")
    forms = itertools.product(
        *({unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)} for part in (folder, name))
    )
    return {slash.join(each) for each in forms} - {path}


def _refused(problem: DocumentProblem) -> Document:
    return Document(problem=problem.reason, detail=str(problem))


def examine_file(folder: DocumentStore, resolved: str) -> Document:
    """Reads the file at `resolved` (a result of `folder.resolve`) and checks its content."""
    try:
        with folder.open(resolved) as file:
            return _examine(file)
    except DocumentProblem as problem:
        return _refused(problem)
    except OSError as error:
        raise KycError(
            f"documents cannot be read ({cause(error)}): check the landing zone's storage"
        ) from error


def _examine(file: DocumentFile) -> Document:
    size = file.size
    if size == 0:
        return Document(size=0, problem=Reason.FILE_EMPTY, detail="the file has no content")
    if size > MAX_BYTES:
        detail = f"the file has {size} bytes, more than {MAX_BYTES}"
        return Document(size=size, problem=Reason.FILE_TOO_LARGE, detail=detail)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    content_type = media_type(file.read(HEAD_BYTES))
    file.seek(0)
    if content_type in PILLOW_FORMATS and (problem := image_problem(file, size, content_type)):
        return Document(sha256, size, content_type, Reason.UNREADABLE_IMAGE, problem)
    return Document(sha256, size, content_type)
