"""Lists a day's manifests, detects changes and ingests them into the lake."""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date as calendar_date
from pathlib import Path
from typing import Final, TypeAlias

import pyarrow.compute as pc
import pyarrow.parquet as pq

from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.ingest.documents import Documents
from kyc_pipeline.ingest.formats import (
    ManifestUnreadable,
    fails_alone,
    printable,
    read_manifest,
    reader_of,
    shown_path,
)
from kyc_pipeline.ingest.ownership import CANDIDATES_FILE, REJECTED_FILE, Ownership
from kyc_pipeline.ingest.rows import CANDIDATES, REJECTED, validate_rows
from kyc_pipeline.ingest.state import (
    ACCEPTED_KEY,
    MANIFESTS_KEY,
    OWNERS_KEY,
    RECEIVED_KEY,
    Digest,
    Records,
    has_received_rows,
)
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.privacy.erased import ErasedSubjects
from kyc_pipeline.vocabulary import Reason

Signature: TypeAlias = tuple[int, int, int]
"""Size, modification time in nanoseconds and inode: at least one changes when a file is written to."""

_UNFINISHED: Final = (".tmp", ".part")
READ_ATTEMPTS: Final = 3
_NO_LOCK: Final = contextlib.nullcontext(lambda: None)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One manifest file, as it was when its content was hashed."""

    path: Path
    sha256: str
    signature: Signature

    @property
    def name(self) -> str:
        """The printable file name, for messages and the lake."""
        return printable(self.path.name)

    def is_unchanged(self) -> bool:
        """Whether the file is still the one that was hashed."""
        try:
            return _signature(self.path) == self.signature
        except FileNotFoundError:
            return False


@dataclass(frozen=True, slots=True)
class DayFolder:
    """A day's manifest folder: the files that ingest reads, and those that it skips.

    `redelivered`: byte-identical copies of a manifest of the same day. `ignored`: files without a manifest's
    suffix, and entries that are not regular files. Unfinished files (hidden, `.tmp`, `.part`) are left out.
    """

    manifests: tuple[Manifest, ...]
    redelivered: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the manifests' names and contents."""
        return _digest((manifest.path.name, manifest.sha256) for manifest in self.manifests)


def require_landing(landing: Path, lake: Lake) -> None:
    """Raises :class:`UsageError` unless the landing zone has a manifest folder for at least one day."""
    require_mounted(landing, lake)
    if not manifest_dates(landing):
        raise UsageError(
            f"KYC_LANDING: {landing} has no manifests: put them into manifests/<YYYY-MM-DD>/ below it"
        )


def manifest_dates(landing: Path) -> list[str]:
    """The days that have a manifest folder, in order."""
    return [name for name in _folders(landing) if _is_date(name)]


def stray_folders(landing: Path) -> list[str]:
    """Folders below `manifests/` whose name is not a date. Nothing in them is read."""
    return [name for name in _folders(landing) if not _is_date(name)]


def manifest_signature(landing: Path, date: str) -> str:
    """Hash (hex) of the manifests' names, sizes and times: changes when one of them is written to.

    Reads no content. Two equal signatures some time apart mean that the files are complete.
    """
    files, _ = _manifest_files(landing, date)
    return _digest((path.name, repr(signature)) for path, signature in files)


def manifest_identity(landing: Path, date: str) -> str:
    """Hash (hex) of the manifests' names and contents, without byte-identical copies.

    A file is read again only if its size, time or inode changed.
    """
    return list_manifests(landing, date, hash_file=_cached_sha256).identity


def is_ingested(landing: Path, lake: Lake, date: str, planned: Lake | None = None) -> bool:
    """Whether the day's `submissions` were made from its current manifests and still hold; see :mod:`state`.

    Days in `planned` take precedence over those in `lake`. False if the manifests cannot be read: the day's
    ingest reports why.
    """
    try:
        return Records(lake, planned).is_current(date, manifest_identity(landing, date))
    except KycError:
        return False


def is_made_from(landing: Path, lake: Lake, date: str) -> bool:
    """Whether the day's partitions were made from its current manifests; another day may outdate them."""
    try:
        return Records(lake).of(date).manifests == manifest_identity(landing, date)
    except KycError:
        return False


def awaits_files(lake: Lake, date: str, reasons: Collection[Reason] = (Reason.FILE_NOT_FOUND,)) -> bool:
    """Whether the day has a row that was rejected for a missing document, which may have arrived since.

    Or, with other `reasons`, for one of these.
    """
    if not lake.exists(REJECTED_SUBMISSIONS, date):
        return False
    try:
        found = lake.read(REJECTED_SUBMISSIONS, date, ["reason"])["reason"]
    except KycError:
        return True
    return not set(reasons).isdisjoint(pc.unique(found).to_pylist())


def list_manifests(
    landing: Path, date: str, hash_file: Callable[[Path, Signature], str] | None = None
) -> DayFolder:
    """The day's manifests, sorted by name. Without a folder there are none."""
    files, ignored = _manifest_files(landing, date)
    manifests: dict[str, Manifest] = {}
    redelivered = []
    for path, signature in files:
        sha256 = (hash_file or _sha256)(path, signature)
        if sha256 in manifests:
            redelivered.append(printable(path.name))
        else:
            manifests[sha256] = Manifest(path, sha256, signature)
    return DayFolder(tuple(manifests.values()), tuple(redelivered), tuple(ignored))


def require_mounted(landing: Path, lake: Lake) -> None:
    """Raises :class:`UsageError` if the landing zone is missing, or empty though the lake was made from it.

    Probably its volume is not mounted, which must not look like days without manifests.
    """
    if not landing.is_dir():
        raise UsageError(
            f"KYC_LANDING: {landing} is not a folder: mount its volume, create it, or set KYC_LANDING"
        )
    if not manifest_dates(landing) and has_received_rows(lake):
        raise UsageError(
            f"KYC_LANDING: {landing} has no manifests, but the lake has days that were made from manifests: "
            "mount its volume, or keep one empty folder manifests/<YYYY-MM-DD>/ if they were all removed"
        )


def _folders(landing: Path) -> list[str]:
    root = landing / "manifests"
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []


def _is_date(name: str) -> bool:
    try:
        return calendar_date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False


def ignored_count(landing: Path, date: str) -> int:
    """How many files and folders of the day are not manifests.

    0 if the day's folder cannot be listed: its ingest reports that, and other days are not held up.
    """
    try:
        return len(_manifest_files(landing, date)[1])
    except KycError:
        return 0


def _manifest_files(landing: Path, date: str) -> tuple[list[tuple[Path, Signature]], list[str]]:
    """The day's manifest files, sorted by name, and the names of other entries."""
    if not _is_date(date):
        raise UsageError(f"not a partition date: {printable(date)}: use YYYY-MM-DD")
    folder = landing / "manifests" / date
    found, ignored = [], []
    try:
        entries = sorted(folder.iterdir(), key=lambda path: printable(path.name)) if folder.is_dir() else []
        for path in entries:
            if path.name.startswith(".") or path.name.lower().endswith(_UNFINISHED):
                continue
            # A pipe or a device would block the reader forever.
            if reader_of(path) and path.is_file():
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    found.append((path, _signature(path)))
            else:
                ignored.append(printable(path.name))
    except OSError as error:
        raise KycError(f"manifests/{date}: cannot be listed ({type(error).__name__})") from error
    return found, ignored


def _signature(path: Path) -> Signature:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _sha256(path: Path, _: Signature) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ManifestUnreadable(path, f"cannot be opened ({type(error).__name__})") from error


_cached_sha256: Final = functools.lru_cache(maxsize=4096)(_sha256)  # the signature is part of the key


def _digest(pairs: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(pairs):
        digest.update(os.fsencode(name) + b"\0" + value.encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """The counts of a day's ingest. Each manifest row is in `accepted_rows` or in `rejected`.

    `accepted` rows are in `submissions`; `kept` of them may have been sent and are no longer in a manifest.
    `received`, `accepted` and `kept` are counted independently, so it is a real check that `received` equals
    `accepted_rows` plus the sum of `rejected`.
    `ignored_columns` counts the rows of each unused column; `ignored_files` are not manifests; `redelivered`
    are byte-identical copies of a manifest, which change nothing. `identity` is :func:`manifest_identity`.
    """

    date: str
    received: int
    accepted: int
    kept: int
    rejected: Mapping[Reason, int]
    manifests: int
    redelivered: tuple[str, ...]
    ignored_files: tuple[str, ...]
    ignored_columns: Mapping[str, int]
    identity: str

    @property
    def accepted_rows(self) -> int:
        """Manifest rows that were accepted."""
        return self.accepted - self.kept


def ingest_partition(
    *,
    landing: Path,
    lake: Lake,
    date: str,
    erased: ErasedSubjects | None = None,
    destination: Lake | None = None,
    lock: AbstractContextManager[Callable[[], None]] = _NO_LOCK,
    confirm: Callable[[], None] = lambda: None,
) -> IngestSummary:
    """Reads the day's manifests and replaces its `submissions` and `rejected_submissions`.

    With `destination`, writes them there and leaves `lake` unchanged, so that a plan can show what an ingest
    would do. Days in `destination` take precedence over those in `lake`.

    Rows of `erased` subjects are rejected. A day without manifests gets two empty partitions. The same input
    gives the same partitions. `lock` (see :mod:`lock`) is held while ids are compared with those of other
    days. The caller must ensure that nothing sends the day's submissions during the ingest; `confirm` is
    called before anything is replaced and raises if that is no longer so.
    Raises :class:`KycError` if a manifest cannot be read. Errors before publication leave the lake unchanged.
    """
    target = destination or lake
    with tempfile.TemporaryDirectory(prefix="kyc-ingest-") as name:
        folder = Path(name)
        day, received, ignored = _stage_stable(landing, lake, date, folder, erased)
        with (
            lock as check_lock,
            Ownership(lake, date, folder, erased, destination) as ownership,
        ):
            rejected = {Reason(reason): count for reason, count in ownership.reasons()}
            kept = ownership.kept()
            footer = {
                MANIFESTS_KEY: day.identity,
                RECEIVED_KEY: str(received),
                OWNERS_KEY: json.dumps(ownership.owners()),
            }
            ids = Digest()
            # The inner partition is published first. The footer of the outer one marks the day as ingested.
            with (
                target.writer(SUBMISSIONS, date, footer, keep_identical=True) as submissions,
                target.writer(REJECTED_SUBMISSIONS, date, keep_identical=True) as rejected_rows,
            ):
                for batch in ownership.rejected():
                    rejected_rows.write(batch)
                for batch in ownership.submissions():
                    submissions.write(batch)
                    ids.add(batch)
                submissions.add_metadata({ACCEPTED_KEY: str(ids)})
                check_lock()
                confirm()
            # If this process was suspended after the last check, another day may have accepted the same ids.
            check_lock()
    return IngestSummary(
        date=date,
        received=received,
        accepted=submissions.rows,
        kept=kept,
        rejected=rejected,
        manifests=len(day.manifests),
        redelivered=day.redelivered,
        ignored_files=day.ignored,
        ignored_columns=dict(sorted(ignored.items())),
        identity=day.identity,
    )


def _stage_stable(
    landing: Path, lake: Lake, date: str, folder: Path, erased: ErasedSubjects | None
) -> tuple[DayFolder, int, Counter[str]]:
    """Writes the day's rows to `folder`. Starts again if a manifest changed while it was read."""
    changed = ""
    for _ in range(READ_ATTEMPTS):
        day = list_manifests(landing, date)
        if not day.manifests:
            require_mounted(landing, lake)
        ignored: Counter[str] = Counter()
        try:
            received = _stage(landing, day, folder, erased, ignored)
        except ManifestUnreadable:
            if all(manifest.is_unchanged() for manifest in day.manifests):
                raise
        changed = next((shown_path(m.path) for m in day.manifests if not m.is_unchanged()), "")
        if not changed:
            return day, received, ignored
    raise KycError(f"{changed}: is still being written: run the day again once it is complete")


def _stage(
    landing: Path, day: DayFolder, folder: Path, erased: ErasedSubjects | None, ignored: Counter[str]
) -> int:
    received = 0
    with (
        Documents(landing / "documents") as documents,
        pq.ParquetWriter(folder / CANDIDATES_FILE, CANDIDATES) as candidates,
        pq.ParquetWriter(folder / REJECTED_FILE, REJECTED) as rejected,
    ):
        for manifest in day.manifests:
            for chunk in read_manifest(manifest.path, ignored):
                with fails_alone(manifest.path):
                    accepted_rows, rejected_rows = validate_rows(chunk, manifest.name, documents, erased)
                candidates.write_table(accepted_rows)
                rejected.write_table(rejected_rows)
                received += chunk.num_rows
    return received
