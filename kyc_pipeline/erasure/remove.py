"""Removes a person from lake and ledger.

An erasure can be killed at any point and repeated. Tombstones are written first. Everything whose id has a
tombstone is erased, even if nothing else links it to the person any more. Tombstones are marked as finished
only when nothing is left and everything derived from the lake was rebuilt.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.erasure.find import (
    ID_COLUMN,
    Day,
    Findings,
    RowPlace,
    find_again,
    find_holds,
    is_among,
    is_at,
    places_of,
)
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.errors import KycError
from kyc_pipeline.flatten.partition import flatten_partition
from kyc_pipeline.ingest.labels import reject_labels
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, Lake
from kyc_pipeline.lake.tables import (
    ALL_TABLES,
    CHANGED_KEY,
    CONTRACT_DRIFT,
    CURATED_TABLES,
    REJECTED_SUBMISSIONS,
    SUBMISSIONS,
    VERIFICATION_RESPONSES,
    Table,
)
from kyc_pipeline.ledger.legal_holds import LegalHoldError
from kyc_pipeline.privacy.erased import DETAIL, ErasedSubjects
from kyc_pipeline.vocabulary import SUBMISSION_TAG, Reason

MAX_PASSES: Final = 3


def delete_documents(stores: Stores, found: Findings) -> None:
    """Deletes the documents that were found. Raises :class:`LegalHoldError` if a legal hold forbids it."""
    found.holds = find_holds(stores, found)  # again: one may have been set since the search
    require_no_hold(found)
    stores.landing.delete(found.deletable_documents)


def erase(
    stores: Stores,
    found: Findings,
    *,
    delete_documents: bool = False,
    request: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> ErasedSubjects:
    """Removes what was found from lake and ledger, and what runs add during the erasure.

    Afterwards rebuild the warehouse, then pass the returned tombstones to `ledger.finish`; until then, the
    next erasure continues this one. `request` goes to the register of what DeepXL must delete. `progress` is
    called with the name of each step before it begins.
    Before any change, it raises :class:`LegalHoldError` if a legal hold forbids it, and :class:`KycError`
    with the holder's name if a run works on one of the days.
    """
    found.holds = find_holds(stores, found)  # again: one may have been set since the search
    require_no_hold(found)
    for _ in range(MAX_PASSES):
        with stores.ledger.holding(found.dates) as check_leases:
            progress("tombstones")
            # An ingest has either written its rows by the end of the wait, so that the next pass finds them,
            # or sees the tombstones before it writes. The lock does the same for labels.
            with stores.ledger.labels_lock() as check_lock:
                stores.ledger.remember(found.erased.tombstones)
                check_lock()
            stores.ledger.wait_for_ingests(stores.lake)
            # Also before anything is removed: a killed erasure must not forget what DeepXL has.
            stores.ledger.register(found.vendor, _pseudonyms(stores, found.vendor), request)
            # Otherwise a run after a killed erasure would miss them.
            stores.ledger.give_up_offloaded(found.ledger)
            if delete_documents:
                progress("documents")
                stores.landing.delete(found.deletable_documents)
            for date, day in sorted(found.days.items()):
                _erase_day(stores, date, day, progress, check_leases)
            if found.labels:
                progress("labels")
                with stores.ledger.labels_lock() as check_lock:
                    reject_labels(stores.lake, functools.partial(found.erased.has, SUBMISSION_TAG))
                    check_lock()
            progress("ledger")
            check_leases()
            stores.ledger.erase(_pseudonyms(stores, found.owned.union(found.ledger)))
        # From here on, a run that read the old rows reads them again or publishes nothing. Rows that it
        # wrote earlier are found now.
        stores.ledger.swept(found.erased.tombstones)
        found = find_again(stores, found)
        if not found.is_stored:
            break
    else:
        raise KycError("runs keep writing data of this person: repeat the erasure when no run is active")
    progress("drafts")  # of killed writers, even in partitions that are never written again
    for table in ALL_TABLES:
        stores.lake.remove_drafts(table)
    progress("purge")
    stores.ledger.purge()
    return found.erased


def _pseudonyms(stores: Stores, ids: Iterable[str]) -> dict[str, str]:
    return {key: stores.pseudonymizer.tag(SUBMISSION_TAG, key) for key in sorted(ids)}


def require_no_hold(found: Findings) -> None:
    """Raises :class:`LegalHoldError`, which names the holds, if one forbids the erasure."""
    if found.holds:
        raise LegalHoldError(
            f"nothing was erased: {'; '.join(map(str, found.holds))}; "
            "`kyc-pipeline legal-hold remove` lifts a hold"
        )


def _erase_day(
    stores: Stores, date: str, day: Day, progress: Callable[[str], None], check_leases: Callable[[], None]
) -> None:
    lake = stores.lake
    if lake.exists(SUBMISSIONS, date) or lake.exists(REJECTED_SUBMISSIONS, date):
        check_leases()
        # Rejected rows first: a crash in between leaves a row in both tables, never in none.
        progress(f"{date} {REJECTED_SUBMISSIONS.name}")
        changed = _reject(lake, date, day)
        progress(f"{date} {SUBMISSIONS.name}")
        _drop_rows(lake, SUBMISSIONS, date, day, changed)
    progress(f"{date} {VERIFICATION_RESPONSES.name}")
    _drop_rows(lake, VERIFICATION_RESPONSES, date, day, confirm=check_leases)
    curated = [table for table in CURATED_TABLES if lake.exists(table, date)]
    if not any(day.rows[table] for table in (*curated, SUBMISSIONS, VERIFICATION_RESPONSES)):
        return
    check_leases()
    progress(f"{date} curated")
    if lake.exists(SUBMISSIONS, date) and lake.exists(VERIFICATION_RESPONSES, date) and curated:
        # Filtering is not enough: `contract_drift` has sums over the whole day. Even tables that look up to
        # date may have the person.
        flatten_partition(lake, date, stores.pseudonymizer, stores.clear_tags, force=True)
        return
    for table in curated:
        _drop_rows(lake, table, date, day)


def _reject(lake: Lake, date: str, day: Day) -> int:
    """Rejects the person's rows as `erased_subject`, without their ids, as the day's next ingest would.

    Returns how many of their submissions were changed after they were sent, so that their rows were rejected.
    """
    accepted: set[RowPlace] = set()
    if lake.exists(SUBMISSIONS, date):
        for batch in lake.batches(SUBMISSIONS, date, ["submission_id", "manifest", "manifest_row"]):
            theirs = batch.filter(is_among(batch["submission_id"], day.ids))
            accepted.update(places_of(theirs))
    exists = lake.exists(REJECTED_SUBMISSIONS, date)
    before = lake.read(REJECTED_SUBMISSIONS, date) if exists else REJECTED_SUBMISSIONS.schema.empty_table()
    is_theirs = pc.or_(is_among(before["submission_id"], day.ids), is_at(before, day.places | accepted))
    others = before.filter(pc.invert(is_theirs))
    is_erased = pc.equal(before["reason"], pa.scalar(Reason.ERASED_SUBJECT.value))
    changed = len(accepted.intersection(places_of(before.filter(pc.invert(is_erased)))))
    places = sorted({*places_of(before.filter(is_theirs)), *accepted})
    erased = pa.Table.from_pylist(
        [
            {
                "submission_id": None,
                "reason": Reason.ERASED_SUBJECT.value,
                "detail": DETAIL,
                "manifest": manifest,
                "manifest_row": row,
            }
            for manifest, row in places
        ],
        schema=REJECTED_SUBMISSIONS.schema,
    )
    rows = pa.concat_tables([others.cast(REJECTED_SUBMISSIONS.schema), erased])
    rows = rows.sort_by([("manifest", "ascending"), ("manifest_row", "ascending")])
    if not rows.equals(before):
        lake.write(
            REJECTED_SUBMISSIONS, date, rows, lake.metadata(REJECTED_SUBMISSIONS, date) if exists else None
        )
    return changed


def _drop_rows(
    lake: Lake,
    table: Table,
    date: str,
    day: Day,
    changed: int = 0,
    confirm: Callable[[], None] = lambda: None,
) -> None:
    """Removes the person's rows from a partition. Its footer stays, with `changed` fewer changed rows."""
    if not day.rows[table] or not lake.exists(table, date):
        return
    metadata = lake.metadata(table, date)
    if changed:
        metadata[CHANGED_KEY] = str(max(int(metadata.get(CHANGED_KEY, 0)) - changed, 0))
    with lake.writer(table, date, metadata, confirm=confirm) as writer:
        for batch in lake.batches(table, date, batch_size=ROW_GROUP_ROWS):
            theirs = is_among(batch[ID_COLUMN[table]], day.ids)
            if table is CONTRACT_DRIFT:
                # The responses are gone, so the counts cannot be computed again: remove only the example.
                rows = pa.table(batch)
                index = rows.schema.get_field_index(ID_COLUMN[table])
                examples = pc.if_else(theirs, pa.scalar(""), batch[ID_COLUMN[table]])
                writer.write(rows.set_column(index, ID_COLUMN[table], examples))
            else:
                writer.write(batch.filter(pc.invert(theirs)))
