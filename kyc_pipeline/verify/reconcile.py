"""Reconciles a day: accepted submissions, written outcomes and the ledger, compared id by id.

Reads each from its own store and takes nothing from the run that wrote them, so the comparison can fail. A
large day is compared in ranges of ids, so that memory does not grow with the day.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, Lake
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES, Table
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.queries import ALL_IDS, IdRange, read_outcomes
from kyc_pipeline.vocabulary import LEFT_FOR_LATER, Outcome

ROWS_AT_ONCE: Final = 500_000
"""Submissions of a range; comparing them takes about 400 bytes each."""
_MAX_LISTED: Final = 5
_KEY: Final = "submission_id"
_NOT_PROCESSED: Final = tuple(outcome.value for outcome in LEFT_FOR_LATER)


@dataclass(frozen=True, slots=True)
class Difference:
    """Submissions on which two stores disagree: their number and the first ids."""

    what: str
    count: int
    ids: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {self.count - len(self.ids)} more" if self.count > len(self.ids) else ""
        return f"{self.count} {self.what} ({', '.join(self.ids)}{more})"


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """A day's counts in each store; `differences` is empty if they agree."""

    submissions: int
    outcomes: int
    in_ledger: int
    latencies: "array[float]"
    """`latency_ms` of the written rows: saves the day's figures a second reading of the table."""
    differences: tuple[Difference, ...]


def reconcile(lake: Lake, ledger: Ledger, date: str) -> Reconciliation:
    """Compares the day's stores. Raises :class:`PartitionMissing` if a table of the lake was never written.

    A submission in the ledger under this date must have the same outcome in the lake; it may be absent there
    only if it was certainly not processed. A submission not in the ledger was not attempted.
    """
    latencies = array("d")
    parts = [_reconcile(lake, ledger, date, within, latencies) for within in _ranges(lake, date)]
    differences = [
        _sum([each for part in parts for each in part.differences if each.what == what])
        for what in dict.fromkeys(each.what for part in parts for each in part.differences)
    ]
    return Reconciliation(
        sum(part.submissions for part in parts),
        sum(part.outcomes for part in parts),
        sum(part.in_ledger for part in parts),
        latencies,
        tuple(differences),
    )


def _ranges(lake: Lake, date: str) -> Iterator[IdRange]:
    """Ranges of ids that together have all ids, with about `ROWS_AT_ONCE` of the day's submissions each."""
    since, count = "", 0
    for batch in lake.batches(SUBMISSIONS, date, [_KEY], min(ROW_GROUP_ROWS, ROWS_AT_ONCE)):
        if count >= ROWS_AT_ONCE and (until := str(batch[_KEY][0])) > since:
            yield IdRange(since, until)
            since, count = until, 0
        count += batch.num_rows
    yield IdRange(since)


def _reconcile(
    lake: Lake, ledger: Ledger, date: str, within: IdRange, latencies: "array[float]"
) -> Reconciliation:
    """The same for a range of ids; adds to `latencies`."""
    accepted = _read(lake, SUBMISSIONS, date, [_KEY], within)
    table = _read(lake, VERIFICATION_RESPONSES, date, [_KEY, "outcome", "latency_ms"], within)
    latencies.extend(float(ms) for ms in table["latency_ms"].to_pylist() if ms is not None)
    written = table.drop_columns("latency_ms")
    known = _ledger_outcomes(ledger, date, within)
    both = written.join(known, _KEY, join_type="full outer")
    outcome, by_ledger = pc.field("outcome"), pc.field("known")
    rows_by_difference = {
        "accepted without an outcome": accepted.join(written, _KEY, join_type="left anti"),
        "with an outcome but not accepted": written.join(accepted, _KEY, join_type="left anti"),
        "accepted twice": _duplicates(accepted),
        "with several outcomes": _duplicates(written),
        "sent according to the ledger but without an outcome here": both.filter(
            outcome.is_null() & ~by_ledger.isin(_NOT_PROCESSED)
        ),
        "with another outcome in the ledger": both.filter(outcome != by_ledger),
        "with an outcome but not in the ledger": both.filter(
            by_ledger.is_null() & ~outcome.isin([Outcome.NOT_ATTEMPTED.value])
        ),
    }
    differences = [_difference(what, rows) for what, rows in rows_by_difference.items() if rows.num_rows]
    return Reconciliation(accepted.num_rows, written.num_rows, known.num_rows, latencies, tuple(differences))


def _read(lake: Lake, table: Table, date: str, columns: list[str], within: IdRange) -> pa.Table:
    if within == ALL_IDS:
        return lake.read(table, date, columns)
    key = pc.field(_KEY)
    condition = key >= within.since if within.until is None else (key >= within.since) & (key < within.until)
    batches = lake.batches(table, date, columns, ROW_GROUP_ROWS)
    schema = pa.schema([table.schema.field(name) for name in columns])
    return pa.Table.from_batches([batch.filter(condition) for batch in batches], schema)


def _ledger_outcomes(ledger: Ledger, date: str, within: IdRange) -> pa.Table:
    schema = pa.schema([(_KEY, pa.string()), ("known", pa.string())])
    parts = read_outcomes(ledger, date, within) if ledger.exists() else iter(())
    return pa.Table.from_batches(
        [
            pa.RecordBatch.from_pydict({_KEY: list(ids), "known": list(outcomes)}, schema=schema)
            for ids, outcomes in (zip(*rows, strict=True) for rows in parts)
        ],
        schema=schema,
    )


def _sum(differences: list[Difference]) -> Difference:
    """The same difference in several ranges, in order."""
    ids = tuple(submission_id for each in differences for submission_id in each.ids)
    return Difference(differences[0].what, sum(each.count for each in differences), ids[:_MAX_LISTED])


def _duplicates(rows: pa.Table) -> pa.Table:
    return rows.group_by(_KEY).aggregate([(_KEY, "count")]).filter(pc.field(f"{_KEY}_count") > 1)


def _difference(what: str, rows: pa.Table) -> Difference:
    ids = sorted({str(value) for value in rows[_KEY].to_pylist()})
    return Difference(what, len(ids), tuple(ids[:_MAX_LISTED]))
