"""Finds what the stores hold about a person. Read-only."""

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.document_store import FileIdentity
from kyc_pipeline.erasure.ledger_store import has_tag
from kyc_pipeline.erasure.offloaded import offloaded_of, offloaded_with
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.ingest.labels import is_erased
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, WHOLE
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    LABELS,
    REJECTED_SUBMISSIONS,
    SUBMISSIONS,
    TABLES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
    Table,
)
from kyc_pipeline.ledger.legal_holds import Holds, LegalHold
from kyc_pipeline.ledger.vendor_deletions import VendorRecord
from kyc_pipeline.privacy.erased import ErasedSubjects, Tombstone, one_name
from kyc_pipeline.vocabulary import SUBMISSION_TAG, Reason

ID_COLUMN: Final = dict.fromkeys(TABLES, "submission_id") | {CONTRACT_DRIFT: "example_submission_id"}
_DOCUMENT_COLUMNS: Final = ("id_file", "selfie_file")
_HASH_COLUMNS: Final = {"id_sha256": "id_size", "selfie_sha256": "selfie_size"}
_ALSO_READ: Final[Mapping[Table, tuple[str, ...]]] = {
    SUBMISSIONS: (*_DOCUMENT_COLUMNS, *_HASH_COLUMNS, *_HASH_COLUMNS.values()),
    REJECTED_SUBMISSIONS: ("reason", "manifest", "manifest_row"),
    VERIFICATIONS: ("verification_id",),
}

_SHOWN_NAMES: Final = 20

RowPlace = tuple[str, int]
"""A row's manifest and its row number there."""


@dataclass
class Day:
    """What one day's partitions hold about the person, and about those who were erased before."""

    ids: set[str] = field(default_factory=set)
    rows: Counter[Table] = field(default_factory=Counter)
    places: set[RowPlace] = field(default_factory=set)
    """Their rows in the day's manifests, if the manifests have not changed since the ingest."""


@dataclass
class Findings:
    """What is stored about a person. Counts may be shown; the tag's value and the ids may not."""

    name: str
    value: str = field(repr=False)
    """Empty if several submissions were asked for by their ids."""
    person: ErasedSubjects
    """What was asked for: a tag, or submissions."""
    erased: ErasedSubjects
    """Everybody to erase: this person, their submissions and documents, and all who were erased before."""
    was_erased: bool
    """Whether the person already has a tombstone."""
    before: ErasedSubjects
    """All who were erased before."""
    unfinished: bool
    """Whether an erasure of this or another person was interrupted."""
    with_responses: bool
    """Whether submissions that only the response ties to the person are erased too."""
    ids: frozenset[str] = field(default=frozenset(), repr=False)
    """The person's submissions, as far as the stores still tie them to the person."""
    echoed: frozenset[str] = field(default=frozenset(), repr=False)
    """Submissions that were sent without the tag, but whose response has it. Not erased unless asked for."""
    tag_names: set[str] = field(default_factory=set)
    """The names of the tags of all accepted submissions."""
    is_name_known: bool = False
    """Whether an accepted submission or a manifest has a tag of this name, in any spelling."""
    spellings: int = 0
    """In how many ways the value is written in the submissions that were sent."""
    days: dict[str, Day] = field(default_factory=dict)
    ledger: dict[str, str] = field(default_factory=dict)
    """Date of each submission in the ledger, by id."""
    owned: set[str] = field(default_factory=set, repr=False)
    """Submissions that only the ledger's table `owners` has."""
    labels: set[str] = field(default_factory=set, repr=False)
    """Submissions with rows in `labels`."""
    label_rows: int = 0
    manifests: set[tuple[str, str]] = field(default_factory=set)
    manifest_rows: int = 0
    unreadable: list[str] = field(default_factory=list)
    """What is wrong with each manifest that could not be searched."""
    files: set[str] = field(default_factory=set, repr=False)
    """Documents named in the person's rows, whether or not they exist."""
    hashes: dict[str, int] = field(default_factory=dict, repr=False)
    """SHA-256 (hex) and size in bytes of the documents of the person's submissions that nobody else sent or
    delivered."""
    documents: dict[str, FileIdentity] = field(default_factory=dict, repr=False)
    """Those of `files` that exist."""
    shared_documents: set[str] = field(default_factory=set, repr=False)
    """Documents that other people's submissions use too, under whatever name."""
    vendor: dict[str, VendorRecord] = field(default_factory=dict, repr=False)
    """What DeepXL may have of the submissions, by id."""
    holds: list[LegalHold] = field(default_factory=list)
    """Legal holds on what the erasure would remove, oldest first: they forbid it."""

    @property
    def rows(self) -> Counter[Table]:
        """Number of rows by table, over all days."""
        total: Counter[Table] = Counter()
        for day in self.days.values():
            total.update(day.rows)
        return total + Counter({LABELS: self.label_rows})

    @property
    def verification_ids(self) -> list[int]:
        """DeepXL's ids, for a deletion request to the vendor."""
        return sorted({each for record in self.vendor.values() for each in record.verification_ids})

    @property
    def is_known(self) -> bool:
        """Whether anything ties the person to this pipeline, now or before an erasure."""
        stored = (
            self.ledger.keys()
            | self.owned
            | self.labels
            | {each for day in self.days.values() for each in day.ids}
        )
        return bool(self.was_erased or self.manifest_rows or self.echoed or self.ids & stored)

    @property
    def why_unknown(self) -> str:
        """Why nobody may have been found. It shows names of tags, never a value."""
        if self.is_name_known:
            return "no submission and no manifest has this tag with this value"
        names = sorted(filter(str.isprintable, self.tag_names))
        known = f"; submissions have {', '.join(names[:_SHOWN_NAMES])}" if names else ""
        more = ", …" if len(names) > _SHOWN_NAMES else ""
        return f"no submission and no manifest has a tag of this name{known}{more}"

    @property
    def remembered(self) -> frozenset[Tombstone]:
        """The tombstones that the erasure writes."""
        return self.erased.tombstones - self.before.tombstones

    @property
    def left(self) -> int:
        """Number of submissions that only the response ties to the person and that therefore stay."""
        return 0 if self.with_responses else len(self.echoed)

    @property
    def is_stored(self) -> bool:
        """Whether the lake or the ledger holds anything."""
        return bool(self.days or self.ledger or self.owned or self.labels)

    @property
    def dates(self) -> list[str]:
        """The days with data, in order."""
        return sorted(self.days.keys() | set(self.ledger.values()))

    @property
    def deletable_documents(self) -> dict[str, FileIdentity]:
        """The documents that `delete_documents` deletes; none if an unreadable manifest may name them."""
        if self.unreadable:
            return {}
        return {file: each for file, each in self.documents.items() if file not in self.shared_documents}


def find(stores: Stores, name: str, value: str, *, with_responses: bool = False) -> Findings:
    """Finds what the stores hold about the person whose tag `name` has this value."""
    return _search(stores, _identify(stores, name, value, with_responses=with_responses))


def find_submissions(stores: Stores, ids: frozenset[str]) -> Findings:
    """Finds what the stores hold about these submissions, whichever person they belong to."""
    return _search(stores, _identify_submissions(stores, ids))


def _search(stores: Stores, found: Findings) -> Findings:
    _search_landing(stores, found)
    _search_lake_and_ledger(stores, found)
    found.documents = stores.landing.existing(sorted(found.files))
    _exclude_what_others_use(stores, found)
    _settle_erased(stores, found)
    found.holds = find_holds(stores, found)
    return found


def find_again(stores: Stores, found: Findings) -> Findings:
    """Finds what lake and ledger hold about the same person now."""
    if found.name == SUBMISSION_TAG:
        remaining = _identify_submissions(stores, found.ids, found.value)
    else:
        remaining = _identify(stores, found.name, found.value, with_responses=found.with_responses)
    remaining.manifest_rows = found.manifest_rows
    _search_lake_and_ledger(stores, remaining)
    _exclude_what_others_use(stores, remaining)
    _settle_erased(stores, remaining)
    return remaining


def _identify_submissions(stores: Stores, ids: frozenset[str], value: str = "") -> Findings:
    known = stores.ledger.tombstones()
    before = ErasedSubjects(known, stores.pseudonymizer)
    person = [stores.tombstone(SUBMISSION_TAG, each) for each in sorted(ids)]
    return Findings(
        SUBMISSION_TAG,
        value,
        ErasedSubjects(person, stores.pseudonymizer),
        ErasedSubjects([*known, *person], stores.pseudonymizer),
        was_erased=before.has(SUBMISSION_TAG, value),
        before=before,
        unfinished=any(not each.finished for each in known),
        with_responses=False,
        ids=ids,
        is_name_known=True,
    )


def _identify(stores: Stores, name: str, value: str, *, with_responses: bool) -> Findings:
    if name == SUBMISSION_TAG:
        return _identify_submissions(stores, frozenset([value]), value)
    known = stores.ledger.tombstones()
    before = ErasedSubjects(known, stores.pseudonymizer)
    tombstone = stores.tombstone(name, value)
    person = ErasedSubjects([tombstone], stores.pseudonymizer)
    sent, values, names = _sent_with_tag(stores, name, person)
    responded = _responded_with_tag(stores, name, value, values | {value}, person) - sent
    # What was sent is known only from the accepted row. Without it, the response is all there is.
    echoed = {each for each in _accepted(stores, responded) if not before.has(SUBMISSION_TAG, each)}
    ids = sent | responded if with_responses else sent | (responded - echoed)
    return Findings(
        name,
        value,
        person,
        ErasedSubjects(
            [*known, tombstone, *(stores.tombstone(SUBMISSION_TAG, each) for each in ids)],
            stores.pseudonymizer,
        ),
        was_erased=before.has(name, value),
        before=before,
        unfinished=any(not each.finished for each in known),
        with_responses=with_responses,
        ids=frozenset(ids),
        echoed=frozenset(echoed),
        tag_names=names,
        is_name_known=one_name(name) in map(one_name, names),
        spellings=len(values),
    )


def _settle_erased(stores: Stores, found: Findings) -> None:
    """Adds the tombstones of documents. Removes the person's if nobody is known: the tag may be mistyped."""
    if not found.is_known:
        found.erased = found.before
        return
    if found.name == SUBMISSION_TAG:
        return  # The person may submit the same documents under another id.
    documents = (Tombstone.of_document(stores.pseudonymizer, each) for each in sorted(found.hashes))
    found.erased = ErasedSubjects([*found.erased.tombstones, *documents], stores.pseudonymizer)


def _sent_with_tag(stores: Stores, name: str, person: ErasedSubjects) -> tuple[set[str], set[str], set[str]]:
    """Ids of submissions that were accepted with the person's tag, the spellings of its value there, and the
    names of all tags.
    """
    lake, found, spellings, names = stores.lake, set[str](), set[str](), set[str]()
    for date in lake.dates(SUBMISSIONS):
        for batch in lake.batches(SUBMISSIONS, date, ["submission_id", "tags"], ROW_GROUP_ROWS):
            for each in texts(pc.unique(cast("Any", batch["tags"]).keys)):
                names.add(each)
                if one_name(each) != one_name(name):
                    continue
                values = pc.map_lookup(batch["tags"], pa.scalar(each), "first")
                same = {each for each in texts(pc.unique(values)) if person.has(name, each)}
                spellings |= same
                found |= _ids(batch, is_among(values, same))
    return found, spellings, names


def _responded_with_tag(
    stores: Stores, name: str, value: str, spellings: Iterable[str], person: ErasedSubjects
) -> set[str]:
    """Ids of submissions whose response has the tag, in `verification_tags`, the ledger or the lake."""
    lake, found = stores.lake, set[str]()
    offloaded = stores.ledger.offloaded_dates()
    for date in lake.dates(VERIFICATION_TAGS):
        columns = ["submission_id", "name", "pseudonym"]
        for batch in lake.batches(VERIFICATION_TAGS, date, columns, ROW_GROUP_ROWS):
            names = {each for each in texts(pc.unique(batch["name"])) if one_name(each) == one_name(name)}
            # The pseudonyms there are of each spelling, so only the known ones can be found.
            pseudonyms = {stores.pseudonymizer.tag(each, value) for each in names for value in spellings}
            mask = pc.and_(is_among(batch["name"], names), is_among(batch["pseudonym"], pseudonyms))
            found |= _ids(batch, mask)
    found |= set(stores.ledger.responded_with(value, person.has))
    # Both: a response may have moved meanwhile, in either direction.
    offloaded |= stores.ledger.offloaded_dates()
    return found | set(offloaded_with(lake, offloaded, value, person.has))


def _accepted(stores: Stores, ids: set[str]) -> set[str]:
    """Those of `ids` whose accepted rows are there."""
    found: set[str] = set()
    for date in stores.lake.dates(SUBMISSIONS) if ids else ():
        for batch in stores.lake.batches(SUBMISSIONS, date, ["submission_id"], ROW_GROUP_ROWS):
            found |= _ids(batch, is_among(batch["submission_id"], ids))
    return found


def _search_landing(stores: Stores, found: Findings) -> None:
    """Adds the person's rows in the manifests, and the documents of those that have the tag."""

    # If a day's manifests changed since its ingest, places in them do not match the rows of its partitions.
    @functools.cache
    def is_current(date: str) -> bool:
        return stores.landing.is_ingested(stores.lake, date)

    name = one_name(found.name)
    for row in stores.landing.rows():
        found.is_name_known = found.is_name_known or any(
            one_name(each) == name for tags in row.readings for each in tags
        )
        is_named = row.is_about(found.person)
        if is_named:
            found.files.update(row.files)
        if is_named or any(each.get(SUBMISSION_TAG) in found.ids for each in row.readings):
            found.manifest_rows += 1
            found.manifests.add((row.date, row.manifest))
        elif not row.is_about(found.erased):
            continue
        if is_current(row.date):
            found.days.setdefault(row.date, Day()).places.add((row.manifest, row.row))
    found.unreadable = stores.landing.unreadable
    for row in stores.landing.labels():
        if any(each[SUBMISSION_TAG] in found.ids for each in row.readings):
            found.manifest_rows += 1
            found.manifests.add((row.date, row.manifest))


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
    if lake.exists(LABELS, WHOLE):
        for batch in lake.batches(LABELS, WHOLE, ["submission_id"], ROW_GROUP_ROWS):
            theirs = batch.filter(is_erased(batch, functools.partial(found.erased.has, SUBMISSION_TAG)))
            found.label_rows += theirs.num_rows
            found.labels.update(texts(theirs["submission_id"]))
    found.ledger = {
        key: date for key, date in stores.ledger.submissions() if found.erased.has(SUBMISSION_TAG, key)
    }
    found.owned = {key for key in stores.ledger.owned() if found.erased.has(SUBMISSION_TAG, key)}
    stores.ledger.vendor_records(found.ledger, found.vendor)


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
        own = theirs.filter(is_among(theirs["submission_id"], found.ids))
        for column in _DOCUMENT_COLUMNS:
            found.files.update(texts(own[column]))
        for column, size in _HASH_COLUMNS.items():
            found.hashes.update(zip(texts(own[column]), map(int, texts(own[size])), strict=True))
    elif table is VERIFICATIONS:
        pairs = zip(texts(theirs["submission_id"]), texts(theirs["verification_id"]), strict=True)
        for key, verification_id in pairs:
            found.vendor.setdefault(key, VendorRecord()).verification_ids.add(int(verification_id))


def find_holds(stores: Stores, found: Findings) -> list[LegalHold]:
    """The holds on the person's rows, and on anything else that the erasure would remove."""
    holds = Holds(stores.ledger.holds(), stores.pseudonymizer)
    if not holds:
        return []
    ids = found.ids.union(found.ledger, *(day.ids for day in found.days.values()))
    matched = holds({found.name: found.value}).union(*(holds({SUBMISSION_TAG: each}) for each in ids))
    for row in stores.landing.rows():
        if row.is_about(found.person):
            matched = matched.union(*map(holds, row.readings))
    for date in stores.lake.dates(SUBMISSIONS):
        for batch in stores.lake.batches(SUBMISSIONS, date, ["submission_id", "tags"], ROW_GROUP_ROWS):
            theirs = batch.filter(is_among(batch["submission_id"], ids))
            matched = matched.union(*(holds(dict(tags or ())) for tags in theirs["tags"].to_pylist()))
    for response in _responses_of(stores, ids):
        matched |= {hold for hold, subject in holds.items() if has_tag(response, subject.has)}
    return sorted(matched, key=lambda hold: hold.set_at)


def _responses_of(stores: Stores, ids: Collection[str]) -> Iterator[str]:
    offloaded = stores.ledger.offloaded_dates()
    yield from stores.ledger.responses_of(ids)
    offloaded |= stores.ledger.offloaded_dates()  # as in `_responded_with_tag`
    yield from offloaded_of(stores.lake, offloaded, ids)


def _exclude_what_others_use(stores: Stores, found: Findings) -> None:
    """Finds the documents that other people's rows name too, and forgets the hashes of those they use."""
    if not (found.documents or found.hashes):
        return
    others = _delivered_by_others(stores, found)
    for date in stores.lake.dates(SUBMISSIONS):
        theirs = found.days[date].ids if date in found.days else ()
        columns = ["submission_id", *_DOCUMENT_COLUMNS, *_HASH_COLUMNS]
        for batch in stores.lake.batches(SUBMISSIONS, date, columns, ROW_GROUP_ROWS):
            rows = batch.filter(pc.invert(is_among(batch["submission_id"], theirs)))
            for column in _DOCUMENT_COLUMNS if found.documents else ():
                others.update(map(stores.landing.identity, texts(pc.unique(rows[column]))))
            for column in _HASH_COLUMNS:
                for used in texts(pc.unique(rows[column])):
                    found.hashes.pop(used, None)
    found.shared_documents = {file for file, identity in found.documents.items() if identity in others}


def _delivered_by_others(stores: Stores, found: Findings) -> set[FileIdentity | None]:
    """The documents that other people's manifest rows name. Forgets the hashes of those that are the same."""
    others: set[FileIdentity | None] = {None}
    sizes = set(found.hashes.values())
    for row in stores.landing.rows():
        for file in () if row.is_about(found.erased) else row.files:
            identity = stores.landing.identity(file)
            # The row may not be ingested yet, and its file may be a copy.
            if identity not in others and stores.landing.size(file) in sizes:
                found.hashes.pop(stores.landing.sha256(file) or "", None)
            others.add(identity)
    return others


def is_among(ids: Any, wanted: Iterable[str]) -> Any:
    """Mask of the ids that are in `wanted`; false for null."""
    return pc.is_in(ids, value_set=pa.array(sorted(wanted), pa.string()))


def is_at(rows: Any, places: set[RowPlace]) -> Any:
    """Mask of the rows whose place is in `places`."""
    return pa.array([place in places for place in places_of(rows)], pa.bool_())


def places_of(rows: Any) -> Iterator[RowPlace]:
    """The rows' places in their manifests."""
    yield from zip(rows["manifest"].to_pylist(), rows["manifest_row"].to_pylist(), strict=True)


def _ids(batch: pa.RecordBatch, mask: Any) -> set[str]:
    return set(texts(batch["submission_id"].filter(mask)))


def texts(values: Any) -> list[str]:
    """The non-null values as text."""
    return [str(value) for value in values.to_pylist() if value is not None]
