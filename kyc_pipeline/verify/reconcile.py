"""Reconciles a day: accepted submissions, written outcomes and the ledger, compared id by id.

Reads each from its own store and takes nothing from the run that wrote them, so the comparison can fail. A
large day is compared in ranges of ids, so that memory does not grow with the day. Responses and ledger are
read once, and submissions once more for the bounds of several ranges: a ledger has no index by day and id,
and an object store gives a reader the whole object.
"""

import itertools
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, Lake
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.queries import read_outcomes
from kyc_pipeline.scratch import scratch_folder
from kyc_pipeline.vocabulary import LEFT_FOR_LATER, WITHOUT_RESPONSE, Outcome

ROWS_AT_ONCE: Final = 500_000
"""Submissions of a range; comparing them takes about 400 bytes each."""
_MAX_LISTED: Final = 5
_KEY: Final = "submission_id"
_NOT_PROCESSED: Final = tuple(outcome.value for outcome in LEFT_FOR_LATER)
_ACCEPTED: Final = pa.schema([(_KEY, pa.string())])
_WRITTEN: Final = pa.schema([(_KEY, pa.string()), ("outcome", pa.string())])
_KNOWN: Final = pa.schema([(_KEY, pa.string()), ("known", pa.string())])
_WITHOUT_RESPONSE: Final = [outcome.value for outcome in WITHOUT_RESPONSE]
_COMPRESSED: Final = pa.ipc.IpcWriteOptions(compression="zstd")


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
    """`latency_ms` of the rows with a sound response: saves the day's figures a second reading."""
    differences: tuple[Difference, ...]


def reconcile(lake: Lake, ledger: Ledger, date: str) -> Reconciliation:
    """Compares the day's stores. Raises :class:`PartitionMissing` if a table of the lake was never written.

    A submission in the ledger under this date must have the same outcome in the lake; it may be absent there
    only if it was certainly not processed. A submission not in the ledger was not attempted.
    """
    latencies = array("d")
    counts, found = (0, 0, 0), []
    with scratch_folder() as folder:
        bounds = _bounds(lake, date)
        stores = (
            _ranges(_accepted(lake, date), _ACCEPTED, bounds, Path(folder, "accepted")),
            _ranges(_written(lake, date, latencies), _WRITTEN, bounds, Path(folder, "written")),
            _ranges(_known(ledger, date), _KNOWN, bounds, Path(folder, "known")),
        )
        for accepted, written, known in zip(*stores, strict=True):
            counts = counts[0] + accepted.num_rows, counts[1] + written.num_rows, counts[2] + known.num_rows
            found += _differences(accepted, written, known)
    differences = [
        _sum([each for each in found if each.what == what])
        for what in dict.fromkeys(each.what for each in found)
    ]
    return Reconciliation(*counts, latencies, tuple(differences))


def _accepted(lake: Lake, date: str) -> Iterator[pa.RecordBatch]:
    for batch in lake.batches(SUBMISSIONS, date, _ACCEPTED.names, ROW_GROUP_ROWS):
        yield pa.RecordBatch.from_arrays(batch.columns, schema=_ACCEPTED)


def _written(lake: Lake, date: str, latencies: "array[float]") -> Iterator[pa.RecordBatch]:
    """Adds to `latencies`."""
    columns = [*_WRITTEN.names, "latency_ms"]
    for batch in lake.batches(VERIFICATION_RESPONSES, date, columns, ROW_GROUP_ROWS):
        is_timeout = pc.is_in(batch["outcome"], pa.array(_WITHOUT_RESPONSE))
        of_responses = batch.filter(pc.invert(is_timeout))["latency_ms"].drop_null()
        latencies.frombytes(of_responses.to_numpy().tobytes())
        yield pa.RecordBatch.from_arrays([batch[name] for name in _WRITTEN.names], schema=_WRITTEN)


def _known(ledger: Ledger, date: str) -> Iterator[pa.RecordBatch]:
    for rows in read_outcomes(ledger, date) if ledger.exists() else ():
        yield pa.RecordBatch.from_arrays([*map(pa.array, zip(*rows, strict=True))], schema=_KNOWN)


def _bounds(lake: Lake, date: str) -> list[str]:
    """Ids between ranges that have about `ROWS_AT_ONCE` of the day's submissions each; usually none."""
    found: list[str] = []
    if lake.row_count(SUBMISSIONS, date) <= ROWS_AT_ONCE:
        return found
    count = 0
    for batch in lake.batches(SUBMISSIONS, date, [_KEY], min(ROW_GROUP_ROWS, ROWS_AT_ONCE)):
        if count >= ROWS_AT_ONCE and (bound := str(batch[_KEY][0])) > max(found, default=""):
            found.append(bound)
            count = 0
        count += batch.num_rows
    return found


def _ranges(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, bounds: list[str], folder: Path
) -> Iterator[pa.Table]:
    """The rows of each range. With several, they wait in files of `folder`."""
    if not bounds:
        yield pa.Table.from_batches(batches, schema)
        return
    folder.mkdir()
    key = pc.field(_KEY)
    inner = ((key >= low) & (key < high) for low, high in itertools.pairwise(bounds))
    conditions = [key < bounds[0], *inner, key >= bounds[-1]]
    paths = [str(folder / f"{number}.arrow") for number in range(len(conditions))]
    with ExitStack() as stack:
        files = [stack.enter_context(pa.ipc.new_file(path, schema, options=_COMPRESSED)) for path in paths]
        for batch in batches:
            for file, condition in zip(files, conditions, strict=True):
                file.write_batch(batch.filter(condition))
    for path in paths:
        with pa.OSFile(path, "rb") as source:
            yield pa.ipc.open_file(source).read_all()


def _differences(accepted: pa.Table, written: pa.Table, known: pa.Table) -> list[Difference]:
    """What a range of ids shows."""
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
    return [_difference(what, rows) for what, rows in rows_by_difference.items() if rows.num_rows]


def _sum(differences: list[Difference]) -> Difference:
    """The same difference in several ranges, in order."""
    ids = tuple(submission_id for each in differences for submission_id in each.ids)
    return Difference(differences[0].what, sum(each.count for each in differences), ids[:_MAX_LISTED])


def _duplicates(rows: pa.Table) -> pa.Table:
    return rows.group_by(_KEY).aggregate([(_KEY, "count")]).filter(pc.field(f"{_KEY}_count") > 1)


def _difference(what: str, rows: pa.Table) -> Difference:
    ids = sorted({str(value) for value in rows[_KEY].to_pylist()})
    return Difference(what, len(ids), tuple(ids[:_MAX_LISTED]))
