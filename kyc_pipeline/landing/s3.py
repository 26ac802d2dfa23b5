"""A landing zone in S3: `s3://bucket/prefix`. Nothing from it is stored on disk.

A key is a name, not a path: in S3, `..`, `.` and empty parts have no meaning, but a server or a proxy may
resolve them like a path. So only keys without such parts are read, and nothing outside the prefix.

Manifests and documents are read in ranges of one version: each request names the ETag of the first response.
"""

import contextlib
import errno
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, BinaryIO, ClassVar, Final, Literal, cast

from kyc_pipeline.document_store import DocumentFile, DocumentProblem, FileIdentity
from kyc_pipeline.errors import UsageError
from kyc_pipeline.landing.bucket import (
    BLOCK_BYTES,
    Bucket,
    ObjectFile,
    ObjectIdentity,
    Version,
    signature_of,
)
from kyc_pipeline.landing.zone import LABELS_FOLDER, FolderEntry, ManifestFile, Signature
from kyc_pipeline.vocabulary import Reason

_NOT_IN_KEYS: Final = {"", ".", ".."}


class S3Landing:
    """The landing zone at `s3://bucket/prefix`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._bucket, self._prefix = Bucket.at(url)

    def __str__(self) -> str:
        return self._url

    @property
    def documents(self) -> "S3Documents":
        """The documents."""
        return S3Documents(self._bucket, f"{self._prefix}documents/")

    def problem(self) -> str | None:
        """Why the bucket cannot be listed."""
        try:
            next(self._bucket.pages(self._prefix, MaxKeys=1))
        except OSError as error:
            return f"cannot be listed: {error.strerror}"
        return None

    def folders(self) -> list[str]:
        """The names between `manifests/` and the next slash, in order."""
        return sorted(
            self._below(folder["Prefix"], "").removesuffix("/")
            for page in self._bucket.pages(f"{self._prefix}manifests/", Delimiter="/")
            for folder in page.get("CommonPrefixes", ())
        )

    def loose_files(self) -> list[str]:
        """The objects directly below `manifests/`, in order."""
        return sorted(
            name
            for page in self._bucket.pages(f"{self._prefix}manifests/", Delimiter="/")
            for each in page.get("Contents", ())
            if (name := self._below(each["Key"], ""))
        )

    def entries(self, date: str) -> Iterator[FolderEntry]:
        """The objects of the day, without the empty object that stands for the folder."""
        for page in self._bucket.pages(f"{self._prefix}manifests/{date}/", Delimiter="/"):
            for each in page.get("Contents", ()):
                if name := self._below(each["Key"], f"{date}/"):
                    yield self._file(date, name), signature_of(each)
            for folder in page.get("CommonPrefixes", ()):
                yield self._file(date, self._below(folder["Prefix"], f"{date}/").removesuffix("/")), None

    def labels(self) -> Iterator[FolderEntry]:
        """The objects of `labels/`, as for a day."""
        folder = f"{self._prefix}{LABELS_FOLDER}/"
        for page in self._bucket.pages(folder, Delimiter="/"):
            for each in page.get("Contents", ()):
                if name := each["Key"].removeprefix(folder):
                    yield S3Manifest(self._bucket, each["Key"], LABELS_FOLDER, name), signature_of(each)

    def signature(self, file: ManifestFile) -> Signature | None:
        """Size and ETag of the object now."""
        return self._bucket.signature(cast("S3Manifest", file).key)

    def relationships(self) -> list[ManifestFile]:
        """The objects `relationships/*.csv`, in order."""
        folder = f"{self._prefix}relationships/"
        keys = (
            each["Key"]
            for page in self._bucket.pages(folder, Delimiter="/")
            for each in page.get("Contents", ())
        )
        return [
            S3Manifest(self._bucket, key, "relationships", key.removeprefix(folder))
            for key in sorted(keys)
            if key.lower().endswith(".csv")
        ]

    def snapshot(self) -> "S3Landing":
        """The same landing zone with one listing of all manifests: a request for each 1,000 of them."""
        return _ListedLanding(self._url)

    def _below(self, key: str, folder: str) -> str:
        return key.removeprefix(f"{self._prefix}manifests/{folder}")

    def _file(self, date: str, name: str) -> "S3Manifest":
        return S3Manifest(self._bucket, f"{self._prefix}manifests/{date}/{name}", date, name)


class _ListedLanding(S3Landing):
    @cached_property
    def _listing(self) -> tuple[dict[str, dict[str, Signature | None]], list[str]]:
        """The entries of each folder, and the objects in none."""
        days: dict[str, dict[str, Signature | None]] = defaultdict(dict)
        loose = []
        for page in self._bucket.pages(f"{self._prefix}manifests/"):
            for each in page.get("Contents", ()):
                folder, slash, rest = self._below(each["Key"], "").partition("/")
                name, below, _ = rest.partition("/")
                if name or below:
                    days[folder][name] = None if below else signature_of(each)
                elif slash:  # the empty object that stands for the folder
                    days.setdefault(folder, {})
                elif folder:
                    loose.append(folder)
        return days, loose

    def folders(self) -> list[str]:
        return sorted(self._listing[0])

    def loose_files(self) -> list[str]:
        return sorted(self._listing[1])

    def entries(self, date: str) -> Iterator[FolderEntry]:
        for name, signature in self._listing[0].get(date, {}).items():
            yield self._file(date, name), signature


@dataclass(frozen=True, slots=True)
class S3Manifest:
    """An object below `manifests/<day>/`, `labels/` or `relationships/`."""

    bucket: Bucket
    key: str
    day: str
    name: str

    @property
    def parent(self) -> PurePosixPath:
        """The folder, whose name is the day, `labels` or `relationships`."""
        return PurePosixPath(self.day)

    def open(self, mode: Literal["rb"] = "rb", /) -> BinaryIO:
        """Opens one version of it. Raises :class:`OSError`."""
        return io.BufferedReader(ObjectFile(self.bucket.open(self.key)), BLOCK_BYTES)


class _Document(ObjectFile):
    """A document. If it changes or vanishes while it is read, its row is rejected."""

    def readinto(self, buffer: Any, /) -> int:
        with _not_found():
            return super().readinto(buffer)


@contextlib.contextmanager
def _not_found() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            raise DocumentProblem(str(error.strerror), Reason.FILE_NOT_FOUND) from None
        raise


@dataclass(frozen=True, slots=True)
class S3Documents:
    """The objects below a prefix that ends with a slash."""

    bucket: Bucket
    prefix: str
    readers: ClassVar[int] = 16

    def require_mounted(self) -> None:
        """Raises :class:`UsageError` if there is no object, or the bucket cannot be listed."""
        try:
            page = next(self.bucket.pages(self.prefix, MaxKeys=2))
        except OSError as error:
            what = f"cannot be listed: {error.strerror}"
        else:
            if any(each["Key"] != self.prefix for each in page.get("Contents", ())):
                return
            what = "has no objects: put the documents there, or one empty object if they were all removed"
        raise UsageError(f"KYC_LANDING: s3://{self.bucket.name}/{self.prefix} {what}")

    def resolve(self, path: str) -> str:
        """`path` itself. Raises :class:`DocumentProblem` if it could lead out of the prefix."""
        if _NOT_IN_KEYS.isdisjoint(path.split("/")) and "\0" not in path:
            return path
        raise DocumentProblem(
            "the path must be the key of an object below documents/, without empty, . or .. parts",
            Reason.PATH_OUTSIDE_DOCUMENTS,
        )

    def open(self, resolved: str) -> DocumentFile:
        """Opens one version of a document. Raises as :meth:`DocumentStore.open`."""
        with _not_found():
            document = _Document(self.bucket.open(self.prefix + resolved))
        return DocumentFile(document, document.size)

    def identity(self, path: str) -> ObjectIdentity | None:
        """The key; None if it cannot be one. Needs no request."""
        try:
            return ObjectIdentity(self.prefix + self.resolve(path))
        except DocumentProblem:
            return None

    def existing(self, path: str) -> ObjectIdentity | None:
        """The key and its latest version; None if the bucket has no version of it, not even an old one."""
        if (identity := self.identity(path)) is None:
            return None
        versions = list(self.bucket.versions(identity.key))
        return replace(identity, etag=_latest(versions)) if versions else None

    def delete(self, path: str, identity: FileIdentity) -> None:
        """Deletes all versions of the object, unless it was replaced."""
        key = self.prefix + self.resolve(path)
        versions = list(self.bucket.versions(key))
        if isinstance(identity, ObjectIdentity) and _latest(versions) in (identity.etag, None):
            for version in versions:
                self.bucket.delete(key, version)


def _latest(versions: Iterable[Version]) -> str | None:
    """The ETag of the object as others see it; None if it is deleted."""
    return next((version.etag for version in versions if version.is_latest), None)
