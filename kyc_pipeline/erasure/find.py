"""What the stores hold of a person. Looks, and changes nothing."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    REJECTED_SUBMISSIONS,
    SUBMISSIONS,
    TABLES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
    Table,
)
from kyc_pipeline.privacy.erased import ErasedSubjects, Tombstone
from kyc_pipeline.vocabulary import SUBMISSION_TAG, Reason

ID_COLUMN: Final = dict.fromkeys(TABLES, "submission_id") | {CONTRACT_DRIFT: "example_submission_id"}
_DOCUMENT_COLUMNS: Final = ("id_file", "selfie_file")
_ALSO_READ: Final[Mapping[Table, tuple[str, ...]]] = {
    SUBMISSIONS: _DOCUMENT_COLUMNS,
    REJECTED_SUBMISSIONS: ("reason", "manifest", "manifest_row"),
    VERIFICATIONS: ("verification_id",),
}

Place = tuple[str, int]
"""Manifest and row of a rejected or accepted row."""


@dataclass
class Day:
    """What one day's partitions hold of the person."""

    ids: set[str] = field(default_factory=set)
    rows: Counter[Table] = field(default_factory=Counter)
    places: set[Place] = field(default_factory=set)
    """Where their rows are in the day's manifests, if these are still the ones that were ingested."""


@dataclass
class Findings:
    """What is stored of a person. Counts may be shown; the tag's value and the ids may not."""

    name: str
    value: str = field(repr=False)
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
    files: set[str] = field(default_factory=set, repr=False)
    """Documents that their rows name, whether or not they exist."""
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
    """What the stores hold of the person with the tag `name` of that value."""
    found = _identify(stores, name, value)
    _search_landing(stores, found)
    _search_lake_and_ledger(stores, found)
    found.documents = stores.landing.existing(sorted(found.files))
    found.shared_documents = _used_by_others(stores, found)
    return found


def find_again(stores: Stores, found: Findings) -> Findings:
    """What lake and ledger hold of the same person now."""
    left = _identify(stores, found.name, found.value)
    _search_lake_and_ledger(stores, left)
    return left


def _identify(stores: Stores, name: str, value: str) -> Findings:
    person = stores.tombstone(name, value)
    known = stores.ledger.tombstones()
    of_ids = [stores.tombstone(SUBMISSION_TAG, key) for key in _ids_with_tag(stores, person, value)]
    erased = ErasedSubjects([*known, person, *of_ids], stores.pseudonymizer)
    unfinished = any(not tombstone.finished for tombstone in known)
    return Findings(name, value, erased, person in known, unfinished)


def _ids_with_tag(stores: Stores, person: Tombstone, value: str) -> set[str]:
    """Ids of the submissions that have the person's tag: as accepted, as flattened, as answered."""
    if person.name == SUBMISSION_TAG:
        return {value}
    subject = ErasedSubjects([person], stores.pseudonymizer)
    lake, found = stores.lake, set[str]()
    for date in lake.dates(SUBMISSIONS):
        for batch in lake.batches(SUBMISSIONS, date, ["submission_id", "tags"], ROW_GROUP_ROWS):
            values = pc.map_lookup(batch["tags"], pa.scalar(person.name), "first")
            same = [each for each in texts(pc.unique(values)) if subject.has(person.name, each)]
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


def _search_landing(stores: Stores, found: Findings) -> None:
    """Adds where the person is in the manifests, and the documents of their rows."""
    subject = ErasedSubjects([stores.tombstone(found.name, found.value)], stores.pseudonymizer)

    # Of a day that changed since its ingest, the places say nothing about the rows of its partitions.
    @functools.cache
    def is_current(date: str) -> bool:
        return stores.landing.is_ingested(stores.lake, date)

    for row in stores.landing.rows():
        if row.is_about(subject):
            found.files.update(row.files)
        elif not row.is_about(found.erased):
            continue
        found.manifest_rows += 1
        found.manifests.add((row.date, row.manifest))
        if is_current(row.date):
            found.days.setdefault(row.date, Day()).places.add((row.manifest, row.row))


def _search_lake_and_ledger(stores: Stores, found: Findings) -> None:
    """Adds the person's rows of lake and ledger, and the documents of accepted ones."""
    lake = stores.lake
    for date in sorted({date for table in TABLES for date in lake.dates(table)}):
        day = found.days.setdefault(date, Day())
        # An id is in several tables, and its HMAC takes longer than a look.
        is_theirs = functools.cache(functools.partial(found.erased.has, SUBMISSION_TAG))
        for table in TABLES:
            if not lake.exists(table, date):
                continue
            for batch in lake.batches(
                table, date, [ID_COLUMN[table], *_ALSO_READ.get(table, ())], ROW_GROUP_ROWS
            ):
                day.ids.update(filter(is_theirs, texts(pc.unique(batch[ID_COLUMN[table]]))))
                _add_rows(found, day, table, batch)
        if not day.rows:
            del found.days[date]
    found.ledger = {
        key: date for key, date in stores.ledger.submissions() if found.erased.has(SUBMISSION_TAG, key)
    }


def _add_rows(found: Findings, day: Day, table: Table, batch: pa.RecordBatch) -> None:
    mask = is_among(batch[ID_COLUMN[table]], day.ids)
    if table is REJECTED_SUBMISSIONS:
        mask = pc.or_(mask, is_at(batch, day.places))
        mask = pc.and_(mask, pc.not_equal(batch["reason"], pa.scalar(Reason.ERASED_SUBJECT.value)))
    theirs = batch.filter(mask)
    if not theirs.num_rows:
        return
    day.rows[table] += theirs.num_rows
    if table is SUBMISSIONS:
        for column in _DOCUMENT_COLUMNS:
            found.files.update(texts(theirs[column]))
    elif table is VERIFICATIONS:
        found.verification_ids += map(int, texts(theirs["verification_id"]))


def _used_by_others(stores: Stores, found: Findings) -> list[str]:
    """The person's documents that rows of other people name as well."""
    documents = set(found.documents)
    if not documents:
        return []
    shared: set[str] = set()
    for row in stores.landing.rows():
        if not row.is_about(found.erased):
            shared |= documents.intersection(row.files)
    wanted = pa.array(sorted(documents), pa.string())
    for date in stores.lake.dates(SUBMISSIONS):
        theirs = found.days[date].ids if date in found.days else ()
        columns = ["submission_id", *_DOCUMENT_COLUMNS]
        for batch in stores.lake.batches(SUBMISSIONS, date, columns, ROW_GROUP_ROWS):
            others = batch.filter(pc.invert(is_among(batch["submission_id"], theirs)))
            for column in _DOCUMENT_COLUMNS:
                shared.update(texts(others[column].filter(pc.is_in(others[column], value_set=wanted))))
    return sorted(shared)


def is_among(ids: Any, wanted: Iterable[str]) -> Any:
    """A mask; false for null."""
    return pc.is_in(ids, value_set=pa.array(sorted(wanted), pa.string()))


def is_at(rows: Any, places: set[Place]) -> Any:
    """A mask of the rows that are at one of `places`."""
    pairs = zip(rows["manifest"].to_pylist(), rows["manifest_row"].to_pylist(), strict=True)
    return pa.array([pair in places for pair in pairs], pa.bool_())


def places_of(rows: Any) -> Iterator[Place]:
    """Where the rows are in their manifests."""
    yield from zip(rows["manifest"].to_pylist(), rows["manifest_row"].to_pylist(), strict=True)


def _ids(batch: pa.RecordBatch, mask: Any) -> set[str]:
    return set(texts(batch["submission_id"].filter(mask)))


def texts(values: Any) -> list[str]:
    """The values that are not null, as text."""
    return [str(value) for value in values.to_pylist() if value is not None]
