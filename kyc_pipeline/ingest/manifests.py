"""Lists a day's manifests, detects changes and ingests them into the lake."""

import contextlib
import datetime
import functools
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, cast

import pyarrow.compute as pc
import pyarrow.parquet as pq

from kyc_pipeline.days import is_day
from kyc_pipeline.document_store import cause
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.ingest.documents import Documents
from kyc_pipeline.ingest.formats import needs_encoding, read_manifest, reader_of
from kyc_pipeline.ingest.formats.unreadable import ManifestUnreadable, fails_alone, printable, shown_path
from kyc_pipeline.ingest.landing_options import DEFAULTS, LandingOptions
from kyc_pipeline.ingest.owners import Owners
from kyc_pipeline.ingest.ownership import CANDIDATES_FILE, REJECTED_FILE, Ownership
from kyc_pipeline.ingest.personal_ids import PersonalIds
from kyc_pipeline.ingest.rows import CANDIDATES, REJECTED, validate_rows
from kyc_pipeline.ingest.state import (
    ACCEPTED_KEY,
    DECIDED_KEY,
    LEFT_TO_OWNER,
    MANIFESTS_KEY,
    OWNERS_KEY,
    RECEIVED_KEY,
    Digest,
    Records,
    has_received_rows,
)
from kyc_pipeline.lake.storage import Lake, PartitionMissing
from kyc_pipeline.lake.tables import CHANGED_KEY, REJECTED_SUBMISSIONS, SUBMISSIONS
from kyc_pipeline.landing.opening import Root, open_landing
from kyc_pipeline.landing.zone import LABELS_FOLDER, FolderEntry, Landing, ManifestFile, Signature
from kyc_pipeline.privacy.erased import ErasedSubjects
from kyc_pipeline.scratch import scratch_folder
from kyc_pipeline.vocabulary import Reason
from kyc_pipeline.wording import plural, run_day_again

HashFile: TypeAlias = Callable[[ManifestFile, Signature], str]
"""The SHA-256 (hex) of a file with this signature."""
_HIDDEN: Final = (".", "~$")
"""Excel writes `~$name.xlsx` beside a workbook that somebody has open."""
_USUAL_SUFFIXES: Final = frozenset(
    {".7z", ".bak", ".doc", ".docx", ".gz", ".html", ".jpeg", ".jpg", ".md", ".ods", ".pdf", ".png"}
    | {".tar", ".txt", ".xls", ".xlsm", ".xml", ".yaml", ".zip", ".zst"}
)
"""Suffixes that describe a file and reveal nothing about a person."""
_UNFINISHED: Final = (".tmp", ".part", ".partial", ".filepart", ".crdownload", ".download")
"""rsync and Firefox, rclone, WinSCP, Chrome and Safari."""
_MARKERS: Final = ("_success", "_committed_", "_started_")
"""Empty files of Spark and Databricks, which say that a folder is complete."""
_AHEAD: Final = datetime.timedelta(days=366)
"""How early a manifest may be delivered."""
READ_ATTEMPTS: Final = 3
_NO_OWNERS: Final = contextlib.nullcontext(lambda rows: None)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One manifest file, as it was when its content was hashed."""

    path: ManifestFile
    sha256: str
    signature: Signature

    @property
    def name(self) -> str:
        """The printable file name, for messages and the lake."""
        return printable(self.path.name)

    def is_unchanged(self, landing: Landing) -> bool:
        """Whether the file is still the one that was hashed."""
        try:
            return landing.signature(self.path) == self.signature
        except OSError as error:
            raise ManifestUnreadable(self.path, f"cannot be opened ({cause(error)})") from error


@dataclass(frozen=True, slots=True)
class DayFolder:
    """A day's manifest folder: the files that ingest reads, and those that it skips.

    `redelivered`: byte-identical copies of a manifest of the same day. `ignored`: files without a manifest's
    suffix, and entries that are not regular files. Unfinished files (hidden, `.tmp`, `.part`, …) and Spark's
    markers are left out.
    """

    manifests: tuple[Manifest, ...]
    redelivered: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the manifests' names and contents."""
        return _digest((manifest.path.name, manifest.sha256) for manifest in self.manifests)


def require_landing(landing: Root | Landing, lake: Lake) -> None:
    """Raises :class:`UsageError` unless the landing zone has a manifest folder for at least one day."""
    require_mounted(landing, lake)
    if not manifest_dates(landing):
        raise UsageError(
            f"KYC_LANDING: {landing} has no manifests: put them into manifests/<YYYY-MM-DD>/ below it"
        )


def manifest_dates(landing: Root | Landing) -> list[str]:
    """The days that have a manifest folder, in order."""
    return [name for name in _folders(landing) if is_day(name)]


def strays(landing: Root | Landing, first: datetime.date, today: datetime.date) -> list[str]:
    """What is not read directly below `manifests/`: manifests, and folders that are not named after a day.

    So is the folder of a day before `first`, the first partition, or more than a year after `today`: probably
    the year is mistyped. Without hidden folders, such as a file server's `.snapshot`, and unfinished ones.
    """
    last = (today + _AHEAD).isoformat()
    folders = [
        name
        for name in _folders(landing)
        if not (_is_unfinished(name) or (is_day(name) and first.isoformat() <= name <= last))
    ]
    files = _listed(landing, lambda each: each.loose_files())
    return folders + [name for name in files if _is_loose_manifest(name)]


def stray_line(count: int) -> str:
    """Says how many :func:`strays` there are, and what is read. Their names may be personal."""
    return (
        f"manifests/: {plural(count, 'folder or file', 'folders or files')} not read: ingest reads folders "
        "named after days, such as 2024-09-01, from KYC_START_DATE to a year from now"
    )


def _is_loose_manifest(name: str) -> bool:
    """Whether somebody forgot the folder of the day: this is a manifest's name, or a day's."""
    return is_day(name) or not (_is_unfinished(name) or reader_of(Path(name)) is None)


def _is_unfinished(name: str) -> bool:
    """Whether a file or folder is hidden, or will get another name once it is complete."""
    return name.startswith(_HIDDEN) or name.lower().endswith(_UNFINISHED)


def manifest_signature(landing: Root | Landing, date: str) -> str:
    """Hash (hex) of the manifests' names, sizes and times: changes when one of them is written to.

    Reads no content. Two equal signatures some time apart mean that the files are complete.
    """
    files, _ = _manifest_files(landing, date)
    return _digest((path.name, repr(signature)) for path, signature in files)


def manifest_identity(landing: Root | Landing, date: str) -> str:
    """Hash (hex) of the manifests' names and contents, without byte-identical copies.

    A file is read again only if its size, time or inode changed.
    """
    return list_manifests(landing, date, hash_file=_cached_sha256).identity


def is_ingested(
    landing: Root | Landing,
    lake: Lake,
    date: str,
    planned: Lake | None = None,
    options: LandingOptions = DEFAULTS,
) -> bool:
    """Whether the day's `submissions` were made from its current manifests and still hold; see :mod:`state`.

    Days in `planned` take precedence over those in `lake`. `options` come from the settings. False if the
    manifests cannot be read: the day's ingest reports why.
    """
    try:
        return Records(lake, planned, options=options).is_current(date, manifest_identity(landing, date))
    except KycError:
        return False


def is_made_from(landing: Root | Landing, lake: Lake, date: str) -> bool:
    """Whether the day's partitions were made from its current manifests; another day may outdate them."""
    try:
        return Records(lake).of(date).manifests == manifest_identity(landing, date)
    except KycError:
        return False


def awaits_files(lake: Lake, date: str, reasons: Collection[Reason] = (Reason.FILE_NOT_FOUND,)) -> bool:
    """Whether the day has a row that was rejected for one of `reasons`.

    By default, for a missing document, which may have arrived since.
    """
    try:
        return not rejection_reasons(lake, date).isdisjoint(reasons)
    except PartitionMissing:
        return False
    except KycError:
        return True


def rejection_reasons(lake: Lake, date: str) -> frozenset[str]:
    """The reasons of the day's rejected rows. Raises :class:`KycError` if they cannot be read."""
    reasons = pc.unique(lake.read(REJECTED_SUBMISSIONS, date, ["reason"])["reason"])
    return frozenset(map(str, reasons.to_pylist()))


def list_manifests(landing: Root | Landing, date: str, hash_file: HashFile | None = None) -> DayFolder:
    """The day's manifests, sorted by name. Without a folder there are none."""
    return _day_folder(*_manifest_files(landing, date), hash_file or _sha256)


def list_labels(landing: Root | Landing) -> DayFolder:
    """The manifests of labels, sorted by name. Without a folder there are none."""
    return _day_folder(*_label_files(landing), _cached_sha256)


def labels_signature(landing: Root | Landing) -> str:
    """As :func:`manifest_signature`, of the manifests of labels."""
    files, _ = _label_files(landing)
    return _digest((path.name, repr(signature)) for path, signature in files)


def _day_folder(
    files: list[tuple[ManifestFile, Signature]],
    ignored: list[str],
    hash_file: HashFile,
) -> DayFolder:
    manifests: dict[str, Manifest] = {}
    redelivered = []
    for path, signature in files:
        sha256 = hash_file(path, signature)
        if sha256 in manifests:
            redelivered.append(printable(path.name))
        else:
            manifests[sha256] = Manifest(path, sha256, signature)
    return DayFolder(tuple(manifests.values()), tuple(redelivered), tuple(ignored))


def require_mounted(landing: Root | Landing, lake: Lake) -> None:
    """Raises :class:`UsageError` if the landing zone is missing, or empty though the lake was made from it.

    Probably its volume is not mounted, which must not look like days without manifests.
    """
    if problem := open_landing(landing).problem():
        raise UsageError(f"KYC_LANDING: {landing} {problem}")
    if not manifest_dates(landing) and has_received_rows(lake):
        raise UsageError(
            f"KYC_LANDING: {landing} has no manifests, but the lake has days that were made from manifests: "
            "mount its volume, or keep one empty folder manifests/<YYYY-MM-DD>/ if they were all removed"
        )


def _folders(landing: Root | Landing) -> list[str]:
    return _listed(landing, lambda each: each.folders())


def _listed(landing: Root | Landing, what: Callable[[Landing], list[str]]) -> list[str]:
    try:
        return what(open_landing(landing))
    except OSError as error:
        raise KycError(f"KYC_LANDING: {landing}: manifests/ cannot be listed ({cause(error)})") from error


def ignored_files(landing: Root | Landing, date: str) -> list[str]:
    """The names of the day's files and folders that are not manifests. Do not show them: see `kinds_of`.

    Empty if the day's folder cannot be listed: its ingest reports that, and other days are not held up.
    """
    try:
        return _manifest_files(landing, date)[1]
    except KycError:
        return []


def kinds_of(names: Iterable[str]) -> str:
    """What ignored files are, such as `.docx, other`: their names may be personal, a usual suffix is not."""
    suffixes = {Path(name).suffix.lower() for name in names}
    known = sorted(suffixes.intersection(_USUAL_SUFFIXES))
    return ", ".join([*known, "other"] if suffixes.difference(known) else known)


def _manifest_files(
    landing: Root | Landing, date: str
) -> tuple[list[tuple[ManifestFile, Signature]], list[str]]:
    """The day's manifest files, sorted by name, and the names of other entries."""
    if not is_day(date):
        raise UsageError(f"not a partition date: {printable(date)}: use YYYY-MM-DD")
    return _files_among(lambda: open_landing(landing).entries(date), f"manifests/{date}")


def _label_files(landing: Root | Landing) -> tuple[list[tuple[ManifestFile, Signature]], list[str]]:
    """The manifests of labels, as :func:`_manifest_files`."""
    return _files_among(lambda: open_landing(landing).labels(), LABELS_FOLDER)


def _files_among(
    content: Callable[[], Iterable[FolderEntry]], folder: str
) -> tuple[list[tuple[ManifestFile, Signature]], list[str]]:
    """The manifests in the content of a folder, sorted by name, and the names of other entries."""
    try:
        entries = sorted(content(), key=lambda entry: printable(entry[0].name))
    except OSError as error:
        raise KycError(f"{folder}: cannot be listed ({cause(error)})") from error
    found, ignored = [], []
    for path, signature in entries:
        if _is_unfinished(path.name):
            continue
        if reader_of(path) and signature:
            found.append((path, signature))
        elif not path.name.lower().startswith(_MARKERS):
            ignored.append(printable(path.name))
    return found, ignored


def _sha256(path: ManifestFile, _: Signature) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(cast("io.BufferedReader", file), "sha256").hexdigest()
    except OSError as error:
        raise ManifestUnreadable(path, f"cannot be opened ({cause(error)})") from error


# The signature is part of the key.
_cached_sha256: Final = cast("HashFile", functools.lru_cache(maxsize=4096)(_sha256))


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
    are byte-identical copies of a manifest, which change nothing. `duplicate_documents` of the accepted rows
    were not sent and have the two documents of another submission. `personal_ids` are rows whose id looks
    like personal data. `identity` is :func:`manifest_identity`.
    """

    date: str
    received: int
    accepted: int
    kept: int
    rejected: Mapping[Reason, int]
    duplicate_documents: int
    manifests: int
    redelivered: tuple[str, ...]
    ignored_files: tuple[str, ...]
    ignored_columns: Mapping[str, int]
    personal_ids: PersonalIds
    identity: str

    @property
    def accepted_rows(self) -> int:
        """Manifest rows that were accepted."""
        return self.accepted - self.kept

    def __str__(self) -> str:
        if not self.manifests:
            return f"no manifests{kept_line(self.kept)}"
        return (
            f"{plural(self.received, 'row')} in {plural(self.manifests, 'manifest')}, {self.accepted_rows} "
            f"accepted, {sum(self.rejected.values())} rejected{kept_line(self.kept)}"
        )


def kept_line(kept: int) -> str:
    """The end of a line about rows: how many submissions have no manifest row any more; empty for none."""
    return f"; {kept} more sent earlier, whose rows were changed or removed" if kept else ""


def ingest_partition(
    *,
    landing: Root | Landing,
    lake: Lake,
    date: str,
    erased: ErasedSubjects | None = None,
    destination: Lake | None = None,
    owners: Owners | None = None,
    confirm: Callable[[], None] = lambda: None,
    options: LandingOptions = DEFAULTS,
) -> IngestSummary:
    """Reads the day's manifests and replaces its `submissions` and `rejected_submissions`.

    With `destination`, writes them there and leaves `lake` unchanged, so that a plan can show what an ingest
    would do. Days in `destination` take precedence over those in `lake`.

    Rows of `erased` subjects are rejected. A day without manifests gets two empty partitions. The same input
    gives the same partitions. `owners` decide which day accepts an id; without them, all days are read, and
    nothing else may be ingested at the same time. The caller must ensure that nothing sends the day's
    submissions during the ingest; `confirm` is called before anything is replaced and raises if that is no
    longer so. `options` come from the settings. Raises :class:`KycError` if a manifest cannot be read. Errors
    before publication leave the lake unchanged.
    """
    target = destination or lake
    with scratch_folder() as name:
        folder = Path(name)
        day, staged = _stage_stable(open_landing(landing), lake, date, folder, erased, options)
        with (
            owners.publishing() if owners and owners.held else _NO_OWNERS as published,
            Ownership(
                lake,
                date,
                folder,
                erased,
                destination,
                owners,
                reject_duplicate_documents=options.reject_duplicate_documents,
            ) as ownership,
        ):
            rejected = {Reason(reason): count for reason, count in ownership.reasons()}
            kept = ownership.kept()
            changed = ownership.changed() if kept else 0
            decided = options.decide(
                needs_encoding=staged.needs_encoding,
                types=staged.types,
                has_duplicates=bool(
                    ownership.duplicate_documents or rejected.get(Reason.DUPLICATE_DOCUMENTS)
                ),
            )
            may_have_owners = not rejected.keys().isdisjoint(LEFT_TO_OWNER)
            footer = {
                MANIFESTS_KEY: day.identity,
                DECIDED_KEY: str(decided),
                RECEIVED_KEY: str(staged.received),
                OWNERS_KEY: json.dumps(ownership.owners() if may_have_owners else {}),
                **({CHANGED_KEY: str(changed)} if changed else {}),
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
                confirm()
            published(submissions.rows)
    return IngestSummary(
        date=date,
        received=staged.received,
        accepted=submissions.rows,
        kept=kept,
        rejected=rejected,
        duplicate_documents=ownership.duplicate_documents,
        manifests=len(day.manifests),
        redelivered=day.redelivered,
        ignored_files=day.ignored,
        ignored_columns=dict(sorted(staged.ignored.items())),
        personal_ids=staged.personal,
        identity=day.identity,
    )


@dataclass(slots=True)
class _Staged:
    """A day's rows in files, before they are compared with other rows."""

    personal: PersonalIds
    received: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    types: set[str] = field(default_factory=set)
    """Media types of documents that the settings accepted or rejected."""
    needs_encoding: bool = False
    """Whether a CSV is neither UTF-8 nor UTF-16."""


def _stage_stable(
    landing: Landing,
    lake: Lake,
    date: str,
    folder: Path,
    erased: ErasedSubjects | None,
    options: LandingOptions,
) -> tuple[DayFolder, _Staged]:
    """Writes the day's rows to `folder`. Starts again if a manifest changed while it was read."""
    changed = ""
    for _ in range(READ_ATTEMPTS):
        day = list_manifests(landing, date)
        if not day.manifests:
            require_mounted(landing, lake)
        staged = _Staged(PersonalIds(date))
        try:
            _stage(landing, day, folder, erased, options, staged)
        except ManifestUnreadable:
            if all(manifest.is_unchanged(landing) for manifest in day.manifests):
                raise
        changed = next((shown_path(m.path) for m in day.manifests if not m.is_unchanged(landing)), "")
        if not changed:
            if staged.received:  # afterwards, since the folder may have vanished meanwhile
                landing.documents.require_mounted()
            return day, staged
    raise KycError(f"{changed}: is still being written: once it is complete, {run_day_again(date)}")


def _stage(
    landing: Landing,
    day: DayFolder,
    folder: Path,
    erased: ErasedSubjects | None,
    options: LandingOptions,
    staged: _Staged,
) -> None:
    with (
        Documents(landing.documents, options.document_types) as documents,
        pq.ParquetWriter(folder / CANDIDATES_FILE, CANDIDATES) as candidates,
        pq.ParquetWriter(folder / REJECTED_FILE, REJECTED) as rejected,
    ):
        for manifest in day.manifests:
            if options.csv_encoding and needs_encoding(manifest.path):
                staged.needs_encoding = True
            for chunk in read_manifest(manifest.path, staged.ignored, options.csv_encoding):
                with fails_alone(manifest.path):
                    accepted_rows, rejected_rows = validate_rows(
                        chunk, manifest.name, documents, erased, options.consents
                    )
                staged.personal.add(accepted_rows)
                candidates.write_table(accepted_rows)
                rejected.write_table(rejected_rows)
                staged.received += chunk.num_rows
        staged.types = documents.types_of_roles
