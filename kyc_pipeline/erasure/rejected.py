"""Retention of rejected rows: after some days they lose id and detail, and keep reason and place.

So received = accepted + rejected still holds. The manifests still have the ids: if such a day is ingested
again, the next retention removes them again.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.erasure.find import RowPlace, is_at, places_of
from kyc_pipeline.erasure.stores import Stores
from kyc_pipeline.ingest.state import LEFT_TO_OWNER
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS
from kyc_pipeline.ledger.legal_holds import Holds
from kyc_pipeline.vocabulary import SUBMISSION_TAG, Reason

_PERSONAL: Final = ("submission_id", "detail")
_STAYING: Final = (*LEFT_TO_OWNER, Reason.ERASED_SUBJECT.value)
"""Reasons of rows that keep their id, because ingest compares days by it, or that have none any more."""


@dataclass
class RejectedRows:
    """Rejected rows whose id and detail are due for removal."""

    due: dict[str, set[RowPlace]] = field(default_factory=dict, repr=False)
    """Their places, by day."""
    held: int = 0
    """Rows that a legal hold covers, or may cover."""

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(map(len, self.due.values()))


def find_rejected(stores: Stores, today: date, days: int | None) -> RejectedRows:
    """The rows of partitions that are more than `days` days old; none if `days` is None. Read-only.

    A row has no tags, so only its manifest shows whether a hold covers it. If that has changed since the
    ingest, and there are any holds, the day's rows stay.
    """
    found = RejectedRows()
    if days is None:
        return found
    last = (today - timedelta(days=days)).isoformat()
    holds = Holds(stores.ledger.holds(), stores.pseudonymizer)
    covered = _covered(stores, holds)
    for day in stores.lake.dates(REJECTED_SUBMISSIONS):
        if day >= last:
            break
        is_known = not holds or stores.landing.is_ingested(stores.lake, day)
        for batch in stores.lake.batches(REJECTED_SUBMISSIONS, day, batch_size=ROW_GROUP_ROWS):
            theirs = batch.filter(_is_due(batch))
            ids = theirs["submission_id"].to_pylist()
            for place, key in zip(places_of(theirs), ids, strict=True):
                is_held = place in covered[day] or (key is not None and bool(holds({SUBMISSION_TAG: key})))
                if is_known and not is_held:
                    found.due.setdefault(day, set()).add(place)
                else:
                    found.held += 1
    return found


def forget_rejected(stores: Stores, today: date, days: int | None) -> None:
    """Removes id and detail of the rows that are due. Raises :class:`PartitionBusy` if a run works on a day.

    It looks for them again, since a hold may have been set after the plan was made.
    """
    lake = stores.lake
    for day, places in find_rejected(stores, today, days).due.items():
        with stores.ledger.holding([day]) as check_lease:
            rows = lake.read(REJECTED_SUBMISSIONS, day)
            # The day may have been ingested again since.
            mask = pc.and_(_is_due(rows), is_at(rows, places))
            for name in _PERSONAL:
                index = rows.schema.get_field_index(name)
                kept = pc.if_else(mask, pa.scalar(None, pa.string()), rows[name])
                rows = rows.set_column(index, name, kept)
            check_lease()
            lake.write(REJECTED_SUBMISSIONS, day, rows, lake.metadata(REJECTED_SUBMISSIONS, day))


def _is_due(rows: pa.Table | pa.RecordBatch) -> Any:
    """Mask of the rows whose id or detail may be removed."""
    has_any = pc.or_(pc.is_valid(rows["submission_id"]), pc.is_valid(rows["detail"]))
    return pc.and_(has_any, pc.invert(pc.is_in(rows["reason"], value_set=pa.array(_STAYING))))


def _covered(stores: Stores, holds: Holds) -> dict[str, set[RowPlace]]:
    """The manifest rows that holds cover, by day."""
    covered: dict[str, set[RowPlace]] = defaultdict(set)
    for row in stores.landing.rows() if holds else ():
        if any(map(holds, row.readings)):
            covered[row.date].add((row.manifest, row.row))
    return covered
