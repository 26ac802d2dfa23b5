"""Warehouse and report in an object store: objects that are never replaced, and a pointer to the newest.

If an object is replaced, a reader that has it open gets a mixture of two files. So each build is a new
object, `kyc-<sequence>.duckdb`, and `current.json` names it. One conditional PUT switches that pointer, and
only to a higher sequence: no older build is ever published last. Readers keep an old build until it is
removed: a day after a newer one was uploaded, or at once if it may contain somebody who was erased.

The report is one object, `index.html`, replaced by one conditional PUT: a browser reads it with one request.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import duckdb
import s3fs

from kyc_pipeline.analyze.choices import literal
from kyc_pipeline.document_store import StoreError
from kyc_pipeline.errors import KycError
from kyc_pipeline.landing.bucket import Bucket, signature_of

POINTER: Final = "current.json"
RESTRICTED: Final = "restricted/"
"""Prefix of the files without hidden cells: give analysts no access to it."""
KEPT: Final = timedelta(days=1)
"""How long readers can go on reading a build that was replaced."""
_PAGE: Final = "index.html"
_NAME: Final = re.compile(rf"(?:{RESTRICTED})?kyc-([0-9]+)\.duckdb")
_BUILT: Final = "built-ns"
_SCHEME: Final = "published"
_READ_BYTES: Final = 1 << 20


class _PublishedObjects(s3fs.S3FileSystem):  # type: ignore[misc] # s3fs has no types
    """S3 under another name: DuckDB opens `s3://` databases only with its extension httpfs."""

    protocol = (_SCHEME,)


@dataclass(frozen=True, slots=True)
class Pointer:
    """What `current.json` says. Names are keys below the prefix."""

    sequence: int
    built_ns: int
    """When the build began, in nanoseconds since the epoch."""
    warehouse: str
    warehouse_etag: str
    restricted: str | None
    restricted_etag: str | None

    @classmethod
    def parse(cls, text: bytes) -> "Pointer":
        """From the content of `current.json`. Raises :class:`ValueError` or :class:`TypeError` for others."""
        return cls(**json.loads(text))


class ObjectPlace:
    """Published objects at `s3://bucket/prefix`. All methods raise :class:`KycError` if the store fails."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._bucket, self._prefix = Bucket.at(url)

    def pointer(self) -> Pointer | None:
        """The published build; None if there is none."""
        return self._read_pointer()[0]

    def publish(
        self, draft: Path, restricted: Path | None, sequence: int, built_ns: int, confirm: Callable[[], None]
    ) -> None:
        """Uploads a build and switches the pointer to it. `confirm` raises if it must not be published.

        Raises :class:`KycError` if a newer build is published.
        """
        name = f"kyc-{sequence}.duckdb"
        files = {name: draft} | ({f"{RESTRICTED}{name}": restricted} if restricted else {})
        try:
            with self._explained():
                (warehouse, etag), *others = [(key, self._upload(file, key)) for key, file in files.items()]
            hidden = others[0] if others else (None, None)
            self._switch(Pointer(sequence, built_ns, warehouse, etag, *hidden), confirm)
        except BaseException:
            self._withdraw(sequence, files)
            raise

    def attach(self, connection: duckdb.DuckDBPyConnection, catalog: str, exact: str | None) -> None:
        """Attaches the published build read-only as `catalog`, and its restricted file as `exact`."""
        connection.register_filesystem(_filesystem())
        pointer = self.pointer()
        while True:
            if pointer is None:
                raise KycError(
                    f"there is no warehouse at {self.url}: run `kyc-pipeline backfill`, or set KYC_WAREHOUSE"
                )
            if exact and pointer.restricted is None:
                raise KycError(f"{self.url} has no restricted file: with KYC_MIN_CELL=1, it is already exact")
            try:
                connection.execute(f"ATTACH {self._sql_path(pointer.warehouse)} AS {catalog} (READ_ONLY)")
                if exact and pointer.restricted:
                    connection.execute(f"ATTACH {self._sql_path(pointer.restricted)} AS {exact} (READ_ONLY)")
                return
            except PermissionError as error:
                raise KycError(f"{self.url}/{RESTRICTED} cannot be read: only the pipeline may") from error
            except (duckdb.Error, OSError) as error:
                # An erasure removes the old build as soon as the pointer leads to the new one.
                before, pointer = pointer, self.pointer()
                if pointer == before:
                    raise KycError(
                        f"the warehouse at {self.url} cannot be opened: build it again with "
                        "`kyc-pipeline publish`"
                    ) from error
                connection.execute(f"DETACH DATABASE IF EXISTS {catalog}")

    def has_build(self, built_ns: int, *, restricted: bool = False) -> bool:
        """Whether the warehouse, or its restricted file, is of this build and was not changed since."""
        pointer = self.pointer()
        if pointer is None or pointer.built_ns != built_ns:
            return False
        name, etag = (
            (pointer.restricted, pointer.restricted_etag)
            if restricted
            else (pointer.warehouse, pointer.warehouse_etag)
        )
        return name is not None and self._etag(name) == etag

    def size(self) -> int:
        """Bytes of the published file."""
        pointer = self.pointer()
        with self._explained():
            signature = self._bucket.signature(self._prefix + pointer.warehouse) if pointer else None
        return signature[0] if signature else 0

    def remove_old(self, erased: datetime | None = None, *, at_once: bool = False) -> int:
        """Removes builds that were replaced, for good; returns how many objects.

        They stay for :data:`KEPT`, unless `at_once`, or uploaded before `erased`, the last erasure.
        """
        pointer = self.pointer()
        if pointer is None:
            return 0
        removed = 0
        with self._explained():
            builds: dict[int, list[tuple[str, datetime]]] = {}
            for page in self._bucket.pages(self._prefix):
                for entry in page.get("Contents", ()):
                    if found := _NAME.fullmatch(entry["Key"].removeprefix(self._prefix)):
                        builds.setdefault(int(found[1]), []).append((entry["Key"], entry["LastModified"]))
            replaced_at = datetime.max.replace(tzinfo=UTC)
            for sequence in sorted(builds, reverse=True):
                uploaded = max(time for _, time in builds[sequence])
                is_over = at_once or replaced_at < datetime.now(UTC) - KEPT or (erased and uploaded <= erased)
                if sequence < pointer.sequence and is_over:
                    for key, _ in builds[sequence]:
                        self._bucket.delete_versions(key)
                        removed += 1
                replaced_at = uploaded
        return removed

    @property
    def page_url(self) -> str:
        """The URL of the report."""
        return f"{self.url}/{_PAGE}"

    def has_page(self, built_ns: int | None = None) -> bool:
        """Whether there is a report; with `built_ns`, one of this build."""
        with self._explained():
            found = self._bucket.head(self._prefix + _PAGE)
        return found is not None and built_ns in (None, int(found["Metadata"].get(_BUILT, 0)))

    @contextlib.contextmanager
    def new_page(self) -> Iterator[Callable[[bytes, int], None]]:
        """Yields a function that replaces the report: its content, and the time of its build.

        Raises :class:`KycError` if somebody else replaced it since the block began.
        """
        with self._explained():
            found = self._bucket.head(self._prefix + _PAGE)
        former = signature_of(found, "ContentLength")[1] if found else None

        def write(content: bytes, built_ns: int) -> None:
            headers = {
                "ContentType": "text/html; charset=utf-8",
                "CacheControl": "no-cache",
                "Metadata": {_BUILT: str(built_ns)},
            }
            if not self._replace(_PAGE, content, former, **headers):
                raise KycError(f"{self.page_url} was replaced meanwhile: publish again")

        yield write

    def page_size(self) -> int:
        """Bytes of the report."""
        with self._explained():
            signature = self._bucket.signature(self._prefix + _PAGE)
        return signature[0] if signature else 0

    def remove_old_pages(self) -> None:
        """Removes what a bucket with versioning keeps of earlier reports, for good."""
        with self._explained():
            self._bucket.delete_versions(self._prefix + _PAGE, keep_latest=True)

    def _read_pointer(self) -> tuple[Pointer | None, str | None]:
        """The pointer and its ETag."""
        with self._explained():
            found = self._bucket.read(self._prefix + POINTER)
        if found is None:
            return None, None
        try:
            return Pointer.parse(found[0]), found[1]
        except (ValueError, TypeError) as error:
            raise KycError(f"{self.url}/{POINTER} is not a pointer of this pipeline: remove it") from error

    def _switch(self, new: Pointer, confirm: Callable[[], None]) -> None:
        content = json.dumps(asdict(new), indent=1).encode()
        is_switched = False
        while not is_switched:
            found, former = self._read_pointer()
            if found and found.sequence >= new.sequence:
                raise KycError(f"not published: {self.url} has a newer build ({found.sequence})")
            confirm()
            is_switched = self._replace(POINTER, content, former)

    def _withdraw(self, sequence: int, names: Iterable[str]) -> None:
        """Removes the objects of a build that was not published; `remove_old` does if this fails."""
        with contextlib.suppress(KycError):
            current = self.pointer()
            if current is None or current.sequence != sequence:
                with self._explained():
                    for name in names:
                        self._bucket.delete_versions(self._prefix + name)

    def _replace(self, name: str, content: bytes, former: str | None, **headers: Any) -> bool:
        with self._explained():
            return self._bucket.replace(self._prefix + name, content, former, **headers)

    def _upload(self, file: Path, name: str) -> str:
        """Returns the ETag."""
        self._bucket.upload(file, self._prefix + name)
        signature = self._bucket.signature(self._prefix + name)
        return signature[1] if signature else ""

    def _etag(self, name: str) -> str | None:
        with self._explained():
            signature = self._bucket.signature(self._prefix + name)
        return signature[1] if signature else None

    def _sql_path(self, name: str) -> str:
        return literal(f"{_SCHEME}://{self._bucket.name}/{self._prefix}{name}")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            raise KycError(f"{self.url}: {error.strerror}") from error


def _filesystem() -> s3fs.S3FileSystem:
    """DuckDB reads scattered blocks: a read-ahead would fetch what it does not need."""
    return _PublishedObjects(
        use_listings_cache=False, default_block_size=_READ_BYTES, default_cache_type="blockcache"
    )
