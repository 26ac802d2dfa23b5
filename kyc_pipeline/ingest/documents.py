"""Documents: where a manifest's path leads, what the file holds, and whether it can be sent.

A file's content decides, never its name. The file is read once: hashed, recognised and, if it is an image,
decoded, since a truncated image would be billed and then fail.
"""

import errno
import hashlib
import io
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

import filetype
from PIL import Image

from kyc_pipeline.errors import KycError
from kyc_pipeline.vocabulary import Reason

MAX_BYTES: Final = 50_000_000
"""The vendor says 50 MB: the smaller reading of it is the safe one."""
MAX_PIXELS: Final = 89_478_485
"""Pillow's own limit: an image with more pixels is taken for a decompression bomb."""
CACHE_SIZE: Final = 65_536
MAX_WORKERS: Final = 4
_LARGE_PIXELS: Final = 16_000_000
_HEAD_BYTES: Final = 8192
_PILLOW_FORMATS: Final = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
_NOT_THERE: Final = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.EACCES,
    errno.ENXIO,
}

# One at a time: an image that cannot be decoded at a reduced size takes up to 360 MB.
_large_image = threading.Lock()


class Role(Enum):
    """What a document is for, with the media types that the API takes for it."""

    ID = frozenset({*_PILLOW_FORMATS, "application/pdf"})
    SELFIE = frozenset({*_PILLOW_FORMATS, "video/mp4", "video/quicktime", "video/webm"})


@dataclass(frozen=True, slots=True)
class Document:
    """What is known of one file. `problem` is why it cannot be sent, whatever its role."""

    sha256: str | None = None
    size: int | None = None
    content_type: str | None = None
    problem: Reason | None = None
    detail: str | None = None

    def problem_as(self, role: Role, field: str) -> tuple[Reason, str] | None:
        """Why the file that `field` names cannot be sent in `role`: a reason and its detail, or None."""
        if self.problem is not None:
            return self.problem, f"{field}: {self.detail}"
        if self.content_type not in role.value:
            kind = self.content_type or "an unknown type"
            return Reason.UNSUPPORTED_FILE_TYPE, f"{field}: the content is {kind}, which is not accepted"
        return None


class Documents:
    """Examines the documents below one folder with a bounded number of threads; each file once a run."""

    def __init__(self, root: Path, workers: int | None = None) -> None:
        self._root = os.path.realpath(root)
        self._cache: OrderedDict[str, Document] = OrderedDict()
        self._pool = ThreadPoolExecutor(workers or min(MAX_WORKERS, os.cpu_count() or 1), "kyc-documents")

    def __enter__(self) -> "Documents":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def examine(self, paths: Iterable[str]) -> dict[str, Document]:
        """The document of each of `paths`, which are relative to the documents folder.

        Raises :class:`KycError` when the storage itself fails: that is no fault of a row.
        """
        resolved = {path: self._resolve(path) for path in set(paths)}
        places = {place for place in resolved.values() if place is not None}
        known = {place: self._cache[place] for place in places & self._cache.keys()}
        unknown = sorted(places - known.keys())
        for place, document in zip(unknown, self._pool.map(examine_file, unknown), strict=True):
            known[place] = self._cache[place] = document
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return {path: _OUTSIDE if place is None else known[place] for path, place in resolved.items()}

    def _resolve(self, path: str) -> str | None:
        """The file that `path` leads to after every symlink; None if it is outside the folder."""
        if os.path.isabs(path) or "\0" in path:
            return None
        place = os.path.realpath(os.path.join(self._root, path))
        return place if place.startswith(f"{self._root}{os.sep}") else None


_OUTSIDE: Final = Document(
    problem=Reason.PATH_OUTSIDE_DOCUMENTS, detail="the path must lead to a file inside the documents folder"
)


def examine_file(path: str) -> Document:
    """Reads the file at `path` (already resolved) and checks its content."""
    try:
        # The path is resolved: a symlink here was put there since, and a pipe must not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return _examine(file)
    except OSError as error:
        if error.errno in _NOT_THERE:
            why = "cannot be opened" if error.errno == errno.EACCES else "does not exist"
            return Document(problem=Reason.FILE_NOT_FOUND, detail=f"the file {why}")
        raise KycError(
            f"documents cannot be read ({type(error).__name__}): check the landing zone's storage"
        ) from error


def _examine(file: io.BufferedReader) -> Document:
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        return Document(problem=Reason.FILE_NOT_FOUND, detail="the path is not a file")
    size = found.st_size
    if size == 0:
        return Document(size=0, problem=Reason.FILE_EMPTY, detail="the file has no content")
    if size > MAX_BYTES:
        detail = f"the file has {size} bytes, more than {MAX_BYTES}"
        return Document(size=size, problem=Reason.FILE_TOO_LARGE, detail=detail)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    content_type = filetype.guess_mime(file.read(_HEAD_BYTES))
    image_format = _PILLOW_FORMATS.get(content_type or "")
    file.seek(0)
    problem = image_format and _image_problem(file, image_format)
    if problem:
        return Document(sha256, size, content_type, Reason.UNREADABLE_IMAGE, problem)
    return Document(sha256, size, content_type)


def _image_problem(file: io.BufferedReader, image_format: str) -> str | None:
    """Why the image cannot be decoded to its end, or None."""
    try:
        with Image.open(file, formats=[image_format]) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                return f"the image has {width} x {height} pixels, more than {MAX_PIXELS}"
            # A JPEG decodes at an eighth of its size for a fraction of the cost, still reading every byte.
            image.draft(None, (max(1, width // 8), max(1, height // 8)))
            if image.size[0] * image.size[1] > _LARGE_PIXELS:
                with _large_image:
                    image.load()
            else:
                image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"the image has more than {MAX_PIXELS} pixels"
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes make decoders raise errors of every kind
        return f"the image cannot be decoded ({type(error).__name__}): it may be truncated"
    return None
