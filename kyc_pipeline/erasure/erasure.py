"""Erasure: removes one person from the lake and the ledger, and keeps them from coming back.

A person is named by a tag and its value. What stays is a *tombstone*: the HMAC of that value, and of the
id of each of the person's submissions. Ingest asks the tombstones, so a manifest that still has the person
gives a row rejected as `erased_subject`, and no second call.

The order makes it safe to be killed at any point and repeated. Tombstones come first; whatever has an id
with a tombstone is erased, whether or not anything still tells whose it was; tombstones count as
finished only when nothing is left and everything made from the lake was made again.

The ledger, the landing zone and the stages are on the far side of the protocols here.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, Lake
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    MODEL_CHECKS,
    REJECTED_SUBMISSIONS,
    SUBMISSIONS,
    TABLES,
    VERIFICATION_FILES,
    VERIFICATION_RESPONSES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
    Table,
)
from kyc_pipeline.privacy.erased import DETAIL, ErasedSubjects, Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.vocabulary import SUBMISSION_TAG, Reason

MAX_PASSES: Final = 3
_CURATED: Final = (VERIFICATIONS, MODEL_CHECKS, VERIFICATION_TAGS, VERIFICATION_FILES, CONTRACT_DRIFT)
_ID_COLUMN: Final = dict.fromkeys(TABLES, "submission_id") | {CONTRACT_DRIFT: "example_submission_id"}

Place = tuple[str, int]
"""Manifest and row of a rejected or accepted row."""


class ErasableLedger(Protocol):
    """The ledger, as far as an erasure needs it."""

    def tombstones(self) -> list[Tombstone]:
        """Every tombstone. Creates nothing."""

    def submissions(self) -> Iterator[tuple[str, str]]:
        """(submission id, date) of every submission that is not erased. Creates nothing."""

    def answered_with(self, name: str, value: str, is_same: Callable[[str], bool]) -> list[str]:
        """Ids of submissions whose stored answer has the tag `name` with a value that is the same."""

    def holding(self, dates: Sequence[str]) -> AbstractContextManager[Callable[[], None]]:
        """Holds the leases of `dates`, all or none; the value raises where one of them was lost."""

    def remember(self, tombstones: Iterable[Tombstone]) -> None:
        """Keeps tombstones; those that are known stay as they are."""

    def erase(self, pseudonyms: Mapping[str, str]) -> None:
        """Leaves of each submission (by id) only its figures, under the pseudonym given for it."""

    def purge(self) -> None:
        """Makes the database forget the bytes of what was deleted."""

    def swept(self, tombstones: Iterable[Tombstone]) -> None:
        """Takes down that the stores were swept: what was read before is out of date."""

    def finish(self, tombstones: Iterable[Tombstone]) -> None:
        """Marks tombstones as finished."""


@dataclass(frozen=True, slots=True)
class LandingRow:
    """A manifest's row, with every reading of its tags (`submissionId` among them)."""

    date: str
    manifest: str
    row: int
    readings: Sequence[Mapping[str, str]] = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    """Its documents, relative to the documents folder."""


class LandingZone(Protocol):
    """The landing zone, as far as an erasure needs it."""

    unreadable: int
    """Manifests that the last search could not read."""

    def rows(self) -> Iterator[LandingRow]:
        """Every row of every manifest."""

    def is_ingested(self, lake: Lake, date: str) -> bool:
        """Whether the day's partitions are of its manifests as they are now."""

    def existing(self, files: Iterable[str]) -> list[str]:
        """Those of `files` that are there, inside the documents folder."""

    def delete(self, files: Iterable[str]) -> None:
        """Deletes documents; one that is gone already is no error."""


@dataclass(frozen=True)
class Stores:
    """Everything that may hold the person."""

    lake: Lake
    ledger: ErasableLedger
    landing: LandingZone
    pseudonymizer: Pseudonymizer
    flatten: Callable[[str], object]
    """Makes a day's curated tables again from its answers."""
    ingest_lock: Callable[[], AbstractContextManager[object]]
    """Keeps an ingest from replacing the partitions that are rewritten."""


@dataclass
class Day:
    """What one day's partitions hold of the person."""

    ids: set[str] = field(default_factory=set)
    rows: Counter[Table] = field(default_factory=Counter)
    places: set[Place] = field(default_factory=set)
    """Where their rows are in the day's manifests, as far as these are the ones that were ingested."""


@dataclass
class Findings:
    """What is stored of a person. Counts may be shown; the ids may not."""

    erased: ErasedSubjects
    """Who is to be erased: those of before, and this person with their submissions."""
    was_erased: bool
    """Whether the person has a tombstone already."""
    unfinished: bool
    """Whether an erasure, of this person or another, was interrupted."""
    days: dict[str, Day] = field(default_factory=dict)
    ledger: dict[str, str] = field(default_factory=dict)
    """Date of each submission in the ledger, by id."""
    manifests: set[tuple[str, str]] = field(default_factory=set)
    manifest_rows: int = 0
    documents: list[str] = field(default_factory=list)
    shared_documents: list[str] = field(default_factory=list)
    """Documents that other people's submissions use as well."""
    verification_ids: list[int] = field(default_factory=list)
    """DeepXL's ids: to ask the vendor for a deletion."""

    @property
    def rows(self) -> Counter[Table]:
        """Rows by table, over all days."""
        total: Counter[Table] = Counter()
        for day in self.days.values():
            total.update(day.rows)
        return total

    @property
    def is_stored(self) -> bool:
        """Whether the lake or the ledger holds anything."""
        return bool(self.days or self.ledger)

    @property
    def dates(self) -> list[str]:
        """The days to work on, in order."""
        return sorted(self.days.keys() | set(self.ledger.values()))


def find(stores: Stores, name: str, value: str) -> Findings:
    """What the stores hold of the person with the tag `name` of that value. Changes nothing."""
    found = _identify(stores, name, value)
    files = _search_landing(stores, found, name, value)
    _search_stores(stores, found, files)
    found.documents = stores.landing.existing(sorted(files))
    found.shared_documents = _used_by_others(stores, found)
    return found


def _identify(stores: Stores, name: str, value: str) -> Findings:
    person = _tombstone(stores, name, value)
    known = stores.ledger.tombstones()
    subject = ErasedSubjects([person], stores.pseudonymizer)
    ids = _ids_with_tag(stores, subject, person, value)
    of_ids = [_tombstone(stores, SUBMISSION_TAG, key) for key in ids]
    erased = ErasedSubjects([*known, person, *of_ids], stores.pseudonymizer)
    return Findings(erased, person in known, any(not tombstone.finished for tombstone in known))


def erase(
    stores: Stores,
    found: Findings,
    name: str,
    value: str,
    *,
    delete_documents: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> ErasedSubjects:
    """Removes what was found, and what turns up meanwhile, from the lake and the ledger.

    The warehouse is to be built again afterwards; then what is returned goes to `ledger.finish`, and until
    then the next erasure goes on with this one. `progress` hears of each step before it is taken.
    Raises :class:`KycError` with the holder's name, before anything is changed, while a run works on one of
    the days.
    """
    for _ in range(MAX_PASSES):
        with stores.ledger.holding(found.dates) as check_leases:
            progress("tombstones")
            # Under the lock, so that an ingest has either written its rows, which the next pass then finds,
            # or sees the tombstones before it writes.
            with stores.ingest_lock():
                stores.ledger.remember(found.erased.tombstones)
            if delete_documents:
                progress("documents")
                shared = set(found.shared_documents)
                stores.landing.delete(file for file in found.documents if file not in shared)
            for date, day in sorted(found.days.items()):
                _erase_day(stores, date, day, progress, check_leases)
            progress("ledger")
            check_leases()
            stores.ledger.erase(
                {key: stores.pseudonymizer.tag(SUBMISSION_TAG, key) for key in sorted(found.ledger)}
            )
        # Who read the old rows before this moment looks again, or does not publish what it made of them;
        # what it wrote before this moment is found now.
        stores.ledger.swept(found.erased.tombstones)
        found = _identify(stores, name, value)
        _search_stores(stores, found, set())
        if not found.is_stored:
            break
    else:
        raise KycError("runs keep writing while the person is erased: repeat it when none is under way")
    progress("drafts")
    # Of writers that were killed, also in partitions that nobody writes again.
    for table in TABLES:
        stores.lake.remove_drafts(table)
    progress("purge")
    stores.ledger.purge()
    return found.erased


# --- finding ----------------------------------------------------------------------------------------------


def _tombstone(stores: Stores, name: str, value: str) -> Tombstone:
    return Tombstone(name, stores.pseudonymizer.tag(name, value), stores.pseudonymizer.key_id)


def _ids_with_tag(stores: Stores, subject: ErasedSubjects, person: Tombstone, value: str) -> set[str]:
    """Ids of the submissions that have the person's tag: as accepted, as flattened, as answered."""
    if person.name == SUBMISSION_TAG:
        return {value}
    lake, found = stores.lake, set[str]()
    for date in lake.dates(SUBMISSIONS):
        for batch in lake.batches(SUBMISSIONS, date, ["submission_id", "tags"], ROW_GROUP_ROWS):
            values = pc.map_lookup(batch["tags"], pa.scalar(person.name), "first")
            same = [each for each in _texts(pc.unique(values)) if subject.has(person.name, each)]
            found |= _ids(batch, pc.is_in(values, value_set=pa.array(same, pa.string())))
    for date in lake.dates(VERIFICATION_TAGS):
        columns = ["submission_id", "name", "pseudonym"]
        for batch in lake.batches(VERIFICATION_TAGS, date, columns, ROW_GROUP_ROWS):
            mask = pc.and_(
                pc.equal(batch["name"], pa.scalar(person.name)),
                pc.equal(batch["pseudonym"], pa.scalar(person.pseudonym)),
            )
            found |= _ids(batch, mask)
    found |= set(stores.ledger.answered_with(person.name, value, lambda each: subject.has(person.name, each)))
    return found


def _search_landing(stores: Stores, found: Findings, name: str, value: str) -> set[str]:
    """Takes down where the person is in the manifests; returns the documents of their rows."""
    subject = ErasedSubjects([_tombstone(stores, name, value)], stores.pseudonymizer)
    files: set[str] = set()
    current: dict[str, bool] = {}
    for row in stores.landing.rows():
        is_theirs = any(subject(reading) for reading in row.readings)
        if is_theirs:
            files.update(row.files)
        elif not any(found.erased(reading) for reading in row.readings):
            continue
        found.manifest_rows += 1
        found.manifests.add((row.date, row.manifest))
        if row.date not in current:
            # Else the places say nothing about the rows of the partitions.
            current[row.date] = stores.landing.is_ingested(stores.lake, row.date)
        if current[row.date]:
            found.days.setdefault(row.date, Day()).places.add((row.manifest, row.row))
    return files


def _search_stores(stores: Stores, found: Findings, files: set[str]) -> None:
    """Counts the person's rows of lake and ledger; adds the documents of accepted ones to `files`."""
    lake = stores.lake
    for date in sorted({date for table in TABLES for date in lake.dates(table)}):
        day = found.days.setdefault(date, Day())
        judged: dict[str, bool] = {}
        for table in TABLES:
            if lake.exists(table, date):
                _search_partition(lake, table, date, found, day, judged, files)
        if not day.rows:
            del found.days[date]
    found.ledger = {
        key: date for key, date in stores.ledger.submissions() if found.erased.has(SUBMISSION_TAG, key)
    }


def _search_partition(
    lake: Lake,
    table: Table,
    date: str,
    found: Findings,
    day: Day,
    judged: dict[str, bool],
    files: set[str],
) -> None:
    columns = [_ID_COLUMN[table], *_ALSO_READ.get(table, ())]
    for batch in lake.batches(table, date, columns, ROW_GROUP_ROWS):
        ids = batch[_ID_COLUMN[table]]
        for key in _texts(pc.unique(ids)):
            if key not in judged:
                judged[key] = found.erased.has(SUBMISSION_TAG, key)
                if judged[key]:
                    day.ids.add(key)
        mask = pc.is_in(ids, value_set=pa.array(sorted(day.ids), pa.string()))
        if table is REJECTED_SUBMISSIONS:
            mask = pc.or_(mask, _at_places(batch, day.places))
            mask = pc.and_(mask, pc.not_equal(batch["reason"], pa.scalar(Reason.ERASED_SUBJECT.value)))
        theirs = batch.filter(mask)
        if theirs.num_rows:
            day.rows[table] += theirs.num_rows
            if table is SUBMISSIONS:
                files.update(_texts(theirs["id_file"]), _texts(theirs["selfie_file"]))
            elif table is VERIFICATIONS:
                found.verification_ids += map(int, _texts(theirs["verification_id"]))


_ALSO_READ: Final[Mapping[Table, tuple[str, ...]]] = {
    SUBMISSIONS: ("id_file", "selfie_file"),
    REJECTED_SUBMISSIONS: ("reason", "manifest", "manifest_row"),
    VERIFICATIONS: ("verification_id",),
}


def _used_by_others(stores: Stores, found: Findings) -> list[str]:
    """The person's documents that rows of other people name as well."""
    documents = set(found.documents)
    if not documents:
        return []
    shared: set[str] = set()
    for row in stores.landing.rows():
        if not any(found.erased(reading) for reading in row.readings):
            shared |= documents.intersection(row.files)
    wanted = pa.array(sorted(documents), pa.string())
    for date in stores.lake.dates(SUBMISSIONS):
        theirs = found.days[date].ids if date in found.days else ()
        columns = ["submission_id", "id_file", "selfie_file"]
        for batch in stores.lake.batches(SUBMISSIONS, date, columns, ROW_GROUP_ROWS):
            others = batch.filter(pc.invert(_is_among(batch["submission_id"], theirs)))
            for column in ("id_file", "selfie_file"):
                shared.update(_texts(others[column].filter(pc.is_in(others[column], value_set=wanted))))
    return sorted(shared)


# --- erasing ----------------------------------------------------------------------------------------------


def _erase_day(
    stores: Stores, date: str, day: Day, progress: Callable[[str], None], check_leases: Callable[[], None]
) -> None:
    lake = stores.lake
    if lake.exists(SUBMISSIONS, date) or lake.exists(REJECTED_SUBMISSIONS, date):
        with stores.ingest_lock():
            check_leases()
            # First: a crash in between leaves an accepted row too many, never a row unaccounted for.
            progress(f"{date} {REJECTED_SUBMISSIONS.name}")
            _reject(lake, date, day)
            progress(f"{date} {SUBMISSIONS.name}")
            _drop_rows(lake, SUBMISSIONS, date, day)
    check_leases()
    progress(f"{date} {VERIFICATION_RESPONSES.name}")
    _drop_rows(lake, VERIFICATION_RESPONSES, date, day)
    curated = [table for table in _CURATED if lake.exists(table, date)]
    if not any(day.rows[table] for table in (*curated, SUBMISSIONS, VERIFICATION_RESPONSES)):
        return
    check_leases()
    progress(f"{date} curated")
    if lake.exists(SUBMISSIONS, date) and lake.exists(VERIFICATION_RESPONSES, date) and curated:
        # Not only filtered: what `contract_drift` sums up over the day has to be summed up again.
        stores.flatten(date)
        return
    for table in curated:
        _drop_rows(lake, table, date, day)


def _reject(lake: Lake, date: str, day: Day) -> None:
    """Makes the day's `rejected_submissions` say `erased_subject` of the person's rows, without their id.

    The same rows as the day's next ingest gives.
    """
    accepted: set[Place] = set()
    if lake.exists(SUBMISSIONS, date):
        for batch in lake.batches(SUBMISSIONS, date, ["submission_id", "manifest", "manifest_row"]):
            theirs = batch.filter(_is_among(batch["submission_id"], day.ids))
            accepted.update(_places(theirs))
    exists = lake.exists(REJECTED_SUBMISSIONS, date)
    before = lake.read(REJECTED_SUBMISSIONS, date) if exists else REJECTED_SUBMISSIONS.schema.empty_table()
    is_theirs = pc.or_(_is_among(before["submission_id"], day.ids), _at_places(before, day.places | accepted))
    others = before.filter(pc.invert(is_theirs))
    gone = sorted({*_places(before.filter(is_theirs)), *accepted})
    erased = pa.Table.from_pylist(
        [
            {
                "submission_id": None,
                "reason": Reason.ERASED_SUBJECT.value,
                "detail": DETAIL,
                "manifest": manifest,
                "manifest_row": row,
            }
            for manifest, row in gone
        ],
        schema=REJECTED_SUBMISSIONS.schema,
    )
    rows = pa.concat_tables([others.cast(REJECTED_SUBMISSIONS.schema), erased])
    rows = rows.sort_by([("manifest", "ascending"), ("manifest_row", "ascending")])
    if rows.equals(before):
        return
    lake.write(
        REJECTED_SUBMISSIONS, date, rows, lake.metadata(REJECTED_SUBMISSIONS, date) if exists else None
    )


def _drop_rows(lake: Lake, table: Table, date: str, day: Day) -> None:
    """Replaces a partition by its rows without those of the person; its footer stays."""
    if not day.rows[table] or not lake.exists(table, date):
        return
    with lake.writer(table, date, lake.metadata(table, date)) as writer:
        for batch in lake.batches(table, date, batch_size=ROW_GROUP_ROWS):
            theirs = _is_among(batch[_ID_COLUMN[table]], day.ids)
            if table is CONTRACT_DRIFT:
                # Its answers are gone, so the sums stay as they are; only the example is taken away.
                rows = pa.table(batch)
                index = rows.schema.get_field_index(_ID_COLUMN[table])
                examples = pc.if_else(theirs, pa.scalar(""), batch[_ID_COLUMN[table]])
                writer.write(rows.set_column(index, _ID_COLUMN[table], examples))
            else:
                writer.write(batch.filter(pc.invert(theirs)))


def _is_among(ids: Any, wanted: Iterable[str]) -> Any:
    """A mask; false for null."""
    return pc.is_in(ids, value_set=pa.array(sorted(wanted), pa.string()))


def _at_places(rows: Any, places: set[Place]) -> Any:
    """A mask of the rows that are at one of `places`."""
    pairs = zip(rows["manifest"].to_pylist(), rows["manifest_row"].to_pylist(), strict=True)
    return pa.array([pair in places for pair in pairs], pa.bool_())


def _places(rows: Any) -> Iterator[Place]:
    yield from zip(rows["manifest"].to_pylist(), rows["manifest_row"].to_pylist(), strict=True)


def _ids(batch: pa.RecordBatch, mask: Any) -> set[str]:
    return set(_texts(batch["submission_id"].filter(mask)))


def _texts(values: Any) -> list[str]:
    return [str(value) for value in values.to_pylist() if value is not None]
