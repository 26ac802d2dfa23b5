"""Finds what the stores hold about a person. Read-only."""

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
"""A row's manifest and its row number there."""


@dataclass
class Day:
    """What one day's partitions hold about the person."""

    ids: set[str] = field(default_factory=set)
    rows: Counter[Table] = field(default_factory=Counter)
    places: set[Place] = field(default_factory=set)
    """The person's rows in the day's manifests, if the manifests have not changed since the ingest."""


@dataclass
class Findings:
    """What is stored about a person. Counts may be shown; the tag's value and the ids may not."""

    name: str
    value: str = field(repr=False)
    erased: ErasedSubjects
    """Everybody to erase: this person, their submissions, and all who were erased before."""
    was_erased: bool
    """Whether the person already has a tombstone."""
    unfinished: bool
    """Whether an erasure of this or another person was interrupted."""
    days: dict[str, Day] = field(default_factory=dict)
    ledger: dict[str, str] = field(default_factory=dict)
    """Date of each submission in the ledger, by id."""
    manifests: set[tuple[str, str]] = field(default_factory=set)
    manifest_rows: int = 0
    files: set[str] = field(default_factory=set, repr=False)
    """Documents named in the person's rows, whether or not they exist."""
    documents: list[str] = field(default_factory=list)
    shared_documents: list[str] = field(default_factory=list)
    """Documents that other people's submissions use too."""
    verification_ids: list[int] = field(default_factory=list)
    """DeepXL's ids, for a deletion request to the vendor."""

    @property
    def rows(self) -> Counter[Table]:
        """Number of rows by table, over all days."""
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
        """The days with data, in order."""
        return sorted(self.days.keys() | set(self.ledger.values()))


def find(stores: Stores, name: str, value: str) -> Findings:
    """Finds what the stores hold about the person whose tag `name` has this value."""
    found = _identify(stores, name, value)
    _search_landing(stores, found)
    _search_lake_and_ledger(stores, found)
    found.documents = stores.landing.existing(sorted(found.files))
    found.shared_documents = _used_by_others(stores, found)
    return found


def find_again(stores: Stores, found: Findings) -> Findings:
    """Finds what lake and ledger hold about the same person now."""
    remaining = _identify(stores, found.name, found.value)
    _search_lake_and_ledger(stores, remaining)
    return remaining


def _identify(stores: Stores, name: str, value: str) -> Findings:
    person = stores.tombstone(name, value)
    known = stores.ledger.tombstones()
    submissions = [stores.tombstone(SUBMISSION_TAG, key) for key in _ids_with_tag(stores, person, value)]
    erased = ErasedSubjects([*known, person, *submissions], stores.pseudonymizer)
    unfinished = any(not tombstone.finished for tombstone in known)
    return Findings(name, value, erased, person in known, unfinished)


def _ids_with_tag(stores: Stores, person: Tombstone, value: str) -> set[str]:
    """Ids of submissions with the person's tag in `submissions`, `verification_tags` or the ledger."""
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
    found |= set(
        stores.ledger.responded_with(person.name, value, lambda each: subject.has(person.name, each))
    )
    return found


def _search_landing(stores: Stores, found: Findings) -> None:
    """Adds the person's rows in the manifests, and the documents of those rows."""
    subject = ErasedSubjects([stores.tombstone(found.name, found.value)], stores.pseudonymizer)

    # If a day's manifests changed since its ingest, places in them do not match the rows of its partitions.
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
    """Adds the person's rows in lake and ledger, and the documents of accepted rows."""
    lake = stores.lake
    for date in sorted({date for table in TABLES for date in lake.dates(table)}):
        day = found.days.setdefault(date, Day())
        # Cached, since an id is in several tables and an HMAC is slow.
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
    """The person's documents that other people's rows name too."""
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
    """Mask of the ids that are in `wanted`; false for null."""
    return pc.is_in(ids, value_set=pa.array(sorted(wanted), pa.string()))


def is_at(rows: Any, places: set[Place]) -> Any:
    """Mask of the rows whose place is in `places`."""
    return pa.array([place in places for place in places_of(rows)], pa.bool_())


def places_of(rows: Any) -> Iterator[Place]:
    """The rows' places in their manifests."""
    yield from zip(rows["manifest"].to_pylist(), rows["manifest_row"].to_pylist(), strict=True)


def _ids(batch: pa.RecordBatch, mask: Any) -> set[str]:
    return set(texts(batch["submission_id"].filter(mask)))


def texts(values: Any) -> list[str]:
    """The non-null values as text."""
    return [str(value) for value in values.to_pylist() if value is not None]
