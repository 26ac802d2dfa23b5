"""A bucket of an S3 store, through s3fs. Its settings (credentials, endpoint) are those of the AWS SDK.

If the store fails or asks to slow down, the client retries a request a few times, with growing delays.
"""

import atexit
import contextlib
import errno
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import fsspec.asyn
import s3fs
from s3fs.utils import FileExpired

from kyc_pipeline.document_store import StoreError
from kyc_pipeline.errors import store_code

BLOCK_BYTES: Final = 1 << 22
"""Bytes per request of a large object."""
_KEPT_BLOCKS: Final = 2
_READ_ATTEMPTS: Final = 5
"""Of a small object that keeps being replaced."""
_STOP_SECONDS: Final = 5.0
_MAX_KEY_BYTES: Final = 1024
_VERSION: Final = "?versionId="
"""s3fs would cut this, and what follows it, from a key."""
_NOT_THERE: Final = {
    "InvalidObjectState": "the file is archived: restore it first",
    "NoSuchBucket": "there is no such bucket",
}
_NO_OBJECT: Final = "the file does not exist"
_OTHER_VERSION: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_NO_ENCRYPTION: Final = "ServerSideEncryptionConfigurationNotFoundError"


@atexit.register
def _stop_client() -> None:
    """Ends the thread of s3fs before the interpreter ends.

    Its timers refer to whatever called it, such as a run of Dagster. DuckDB would report that as leaks.
    """
    loop, thread = fsspec.asyn.loop[0], fsspec.asyn.iothread[0]
    if loop is not None and thread is not None and not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_STOP_SECONDS)


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turns every error of the store into a :class:`StoreError`."""
    try:
        yield
    except StoreError:  # of a block within this one
        raise
    except FileExpired:
        raise StoreError(errno.ESTALE, "the file was replaced while it was read") from None
    except OSError as error:
        code = store_code(error.__cause__) or type(error).__name__
        if isinstance(error, FileNotFoundError) or code in _NOT_THERE:
            raise StoreError(errno.ENOENT, _NOT_THERE.get(code, _NO_OBJECT)) from None
        if code in _OTHER_VERSION:
            raise StoreError(errno.EEXIST, "the object is another version") from None
        if isinstance(error, PermissionError):
            raise StoreError(
                errno.EACCES, f"the store refuses access ({code}): check the credentials and the policy"
            ) from None
        if error.errno == errno.EBUSY:
            raise StoreError(
                errno.EBUSY, f"the store is overloaded ({code}), after several attempts: try again later"
            ) from None
        raise StoreError(error.errno or errno.EIO, f"the store failed ({code})") from None
    except Exception as error:  # of botocore and aiohttp: no connection, no credentials
        raise StoreError(
            errno.EIO,
            f"the store cannot be used ({type(error).__name__}): check AWS_ENDPOINT_URL, the network and the "
            "credentials",
        ) from None


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an object; its ETag is None if the version says that the object is deleted."""

    id: str
    etag: str | None
    is_latest: bool


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket. All methods raise :class:`StoreError`."""

    name: str

    @classmethod
    def at(cls, url: str) -> tuple["Bucket", str]:
        """The bucket of `s3://bucket/prefix`, and the prefix of keys: empty, or with a slash at its end."""
        name, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        return cls(name), f"{prefix}/" if prefix else ""

    @property
    def _fs(self) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(use_listings_cache=False)  # s3fs caches the instance

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Calls a method of the store's API on this bucket."""
        with store_errors():
            answer: dict[str, Any] = self._fs.call_s3(method, Bucket=self.name, **parameters)
            return answer

    def pages(self, prefix: str, **parameters: object) -> Iterator[Mapping[str, Any]]:
        """The pages of a listing of the keys that begin with `prefix`."""
        more: dict[str, object] = {}
        while True:
            page = self.call("list_objects_v2", Prefix=prefix, **parameters, **more)
            yield page
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def signature(self, key: str) -> tuple[int, str] | None:
        """Size and ETag of an object; None if there is none."""
        found = self.head(key)
        return None if found is None else signature_of(found, "ContentLength")

    def head(self, key: str) -> Mapping[str, Any] | None:
        """The headers of an object; None if there is none."""
        try:
            return self.call("head_object", Key=key)
        except StoreError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Content and ETag of one version of a small object; None if there is none."""
        for attempt in range(_READ_ATTEMPTS):
            try:
                with store_errors(), self.open(key) as file:
                    return file.read(), _unquoted(file.details["ETag"]) or ""
            except StoreError as error:
                if error.errno == errno.ENOENT:
                    return None
                if error.errno != errno.ESTALE or attempt + 1 == _READ_ATTEMPTS:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def replace(self, key: str, content: bytes, former: str | None, **parameters: object) -> bool:
        """Writes an object in the place of the version with the ETag `former`; None: if there is none.

        One conditional request, so of several writers one succeeds. Returns whether this one did.
        """
        condition = {"IfNoneMatch": "*"} if former is None else {"IfMatch": f'"{former}"'}
        try:
            self.call("put_object", Key=key, Body=content, **condition, **parameters)
        except StoreError as error:
            if error.errno not in (errno.EEXIST, errno.ENOENT):
                raise
            # The client may have repeated a request whose response was lost.
            found = self.read(key)
            return found is not None and found[0] == content
        return True

    def upload(self, file: Path, key: str) -> None:
        """Writes an object from a file, of any size."""
        with store_errors():
            self._fs.put_file(str(file), f"{self.name}/{key}")

    def open(self, key: str) -> s3fs.S3File:
        """Opens one version of an object, for :class:`ObjectFile`."""
        if _VERSION in key or len(key.encode()) > _MAX_KEY_BYTES:
            raise StoreError(errno.ENOENT, _NO_OBJECT)
        with store_errors():
            file = self._fs.open(
                f"{self.name}/{key}",
                "rb",
                block_size=BLOCK_BYTES,
                cache_type="blockcache",
                cache_options={"maxblocks": _KEPT_BLOCKS},
            )
        if file.details["type"] != "file":  # s3fs takes a prefix of other keys for a folder
            raise StoreError(errno.ENOENT, _NO_OBJECT)
        return file

    def versions(self, key: str) -> Iterator[Version]:
        """All versions of an object. Without versioning, there is at most one."""
        more: dict[str, object] = {}
        while True:
            page = self.call("list_object_versions", Prefix=key, **more)
            for kind in ("Versions", "DeleteMarkers"):
                for each in page.get(kind, ()):
                    if each["Key"] == key:
                        yield Version(each["VersionId"], _unquoted(each.get("ETag")), each["IsLatest"])
            # Keys are in order: any other key that begins with this one comes after it.
            if not page.get("IsTruncated") or page["NextKeyMarker"] != key:
                return
            more = {
                "KeyMarker": page["NextKeyMarker"],
                "VersionIdMarker": page.get("NextVersionIdMarker", ""),
            }

    def encrypts(self) -> bool:
        """Whether the bucket encrypts new objects by default."""
        try:
            self.call("get_bucket_encryption")
        except StoreError as error:
            if _NO_ENCRYPTION in str(error.strerror):
                return False
            raise
        return True

    def delete(self, key: str, version: Version) -> None:
        """Deletes a version of an object for good."""
        self.call("delete_object", Key=key, VersionId=version.id)

    def delete_versions(self, key: str, *, keep_latest: bool = False) -> None:
        """Deletes all versions of an object for good, or all but the latest."""
        for version in list(self.versions(key)):
            if not (keep_latest and version.is_latest):
                self.delete(key, version)


class ObjectFile(io.RawIOBase):
    """A version of an object, read in ranges. Reading fails if the object was replaced."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file
        self.size = int(file.size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        with store_errors():
            data = self._file.read(min(len(view), BLOCK_BYTES))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def signature_of(entry: Mapping[str, Any], size: str = "Size") -> tuple[int, str]:
    """Size and ETag, from a listing or a response."""
    return int(entry[size]), _unquoted(entry.get("ETag")) or ""


def _unquoted(etag: str | None) -> str | None:
    return etag.strip('"') if etag else None


@dataclass(frozen=True, slots=True)
class ObjectIdentity:
    """A key, the only name of an object. `etag` is that of the latest version."""

    key: str
    etag: str | None = field(default=None, compare=False)
