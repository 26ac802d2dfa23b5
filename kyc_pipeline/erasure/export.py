"""Exports what is stored about one person, for their right of access. Read-only.

It matches as an erasure does.
"""

import itertools
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.erasure.find import ID_COLUMN, Findings, is_among, is_at
from kyc_pipeline.erasure.landing_zone import LandingRow
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, WHOLE
from kyc_pipeline.lake.tables import LABELS, REJECTED_SUBMISSIONS, TABLES, Table
from kyc_pipeline.ledger.times import to_datetime
from kyc_pipeline.vocabulary import SUBMISSION_TAG

_TIME_SUFFIX: Final = "_at"
"""The suffix of the ledger's time columns."""


def export(stores: Stores, found: Findings) -> dict[str, Any]:
    """Everything about the person, ready for JSON. The same stores give the same result.

    `landing`, `lake` and `ledger` have the rows, `documents` the files that they name, with their present
    hash and size. `only_in_response` has the ids of submissions that may be another person's: the rest omits
    them.
    """
    rows = list(_their_rows(stores, found))
    lake = {table.name: list(_lake_rows(stores, found, table, rows)) for table in TABLES}
    lake[LABELS.name] = list(_labels(stores, found))
    return {
        "tag": found.name,
        "value": found.value,
        "was_erased": found.was_erased,
        "unreadable_manifests": len(stores.landing.unreadable),
        "only_in_response": [] if found.with_responses else sorted(found.echoed),
        "landing": [
            {
                "date": row.date,
                "manifest": row.manifest,
                "row": row.row,
                "files": row.files,
                "tags": row.readings,
            }
            for row in rows
        ],
        "documents": [
            {
                "path": file,
                "size": stores.landing.size(file),
                "sha256": stores.landing.sha256(file),
                "is_also_others": file in found.shared_documents,
            }
            for file in sorted(found.files)
        ],
        "lake": {name: own for name, own in lake.items() if own},
        "ledger": {
            name: [{column: _ledger_value(column, value) for column, value in row.items()} for row in own]
            for name, own in stores.ledger.rows_of(
                sorted(found.ids),
                {key for each in found.ids for key in found.erased.pseudonyms_of_submission(each)},
            ).items()
            if own
        },
    }


def count(exported: dict[str, Any]) -> dict[str, int]:
    """How many rows of each store an export has."""
    return {
        "landing": len(exported["landing"]),
        "documents": len(exported["documents"]),
        "lake": sum(map(len, exported["lake"].values())),
        "ledger": sum(map(len, exported["ledger"].values())),
        "only_in_response": len(exported["only_in_response"]),
    }


def _their_rows(stores: Stores, found: Findings) -> Iterator[LandingRow]:
    for row in itertools.chain(stores.landing.rows(), stores.landing.labels()):
        if row.is_about(found.person) or any(each.get(SUBMISSION_TAG) in found.ids for each in row.readings):
            yield row


def _lake_rows(
    stores: Stores, found: Findings, table: Table, landing: list[LandingRow]
) -> Iterator[dict[str, Any]]:
    for day in stores.lake.dates(table):
        # If the day's manifests changed since its ingest, their rows have other places.
        is_current = table is REJECTED_SUBMISSIONS and stores.landing.is_ingested(stores.lake, day)
        places = {(row.manifest, row.row) for row in landing if is_current and row.date == day}
        for batch in stores.lake.batches(table, day, batch_size=ROW_GROUP_ROWS):
            mask = is_among(batch[ID_COLUMN[table]], found.ids)
            if places:
                mask = pc.or_(mask, is_at(batch, places))
            yield from ({"date": day, **row} for row in _plain(batch.filter(mask)))


def _labels(stores: Stores, found: Findings) -> Iterator[dict[str, Any]]:
    for batch in stores.lake.batches(LABELS, WHOLE) if stores.lake.exists(LABELS, WHOLE) else ():
        yield from _plain(batch.filter(is_among(batch["submission_id"], found.ids)))


def _plain(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for row in batch.to_pylist():
        yield {
            field.name: dict(row[field.name] or ()) if pa.types.is_map(field.type) else _json(row[field.name])
            for field in batch.schema
        }


def _ledger_value(column: str, value: Any) -> Any:
    return _json(to_datetime(value) if column.endswith(_TIME_SUFFIX) else value)


def _json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date | datetime) else value
