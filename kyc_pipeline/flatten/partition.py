"""Turns one day's responses into the five curated tables, in memory that does not grow with the day.

Responses and submissions are both sorted by id, so they are read side by side in batches. All five files have
the same footer, whose `source` identifies the responses and submissions read: it shows that the files belong
together. The same code makes the same bytes from the same input; tables that it already made are kept.
"""

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kyc_pipeline.code_identity import code_identity
from kyc_pipeline.deepxl import contract
from kyc_pipeline.deepxl.call_errors import ContractBroken
from kyc_pipeline.errors import KycError
from kyc_pipeline.flatten.blocks import WITHHELD, ArrowColumn, BlockFlattener, Whole, select
from kyc_pipeline.flatten.drift import DriftCounter
from kyc_pipeline.flatten.records import FACTS, RecordFlattener, Rows, SentSubmission
from kyc_pipeline.lake.sent import read_sent
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, Lake, PartitionReplaced, PartitionWriter
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    STRING_MAP,
    SUBMISSIONS,
    VERIFICATION_RESPONSES,
    VERIFICATIONS,
    Table,
)
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.vocabulary import DriftKind, Outcome
from kyc_pipeline.wording import run_day_again

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
WORKERS: Final = 2
BATCH_ROWS: Final = 4096
"""Maximum responses of a batch. Half as many take 50 MB less and a tenth more time."""
BATCH_BYTES: Final = 1 << 24
"""Maximum bytes of a batch, reckoned with the day's average response: over twice what a batch usually has."""
_ATTEMPTS: Final = 3
_INPUTS: Final = (VERIFICATION_RESPONSES, SUBMISSIONS)
_OUTPUTS: Final = (*FACTS, CONTRACT_DRIFT)
KEY_ID: Final = "key_id"
"""Footer key of the pseudonym key's id."""
_SUMMARY_KEY: Final = "summary"
"""Footer key of the summary (JSON)."""
_RESPONSE_COLUMNS: Final = ["submission_id", "outcome", "response", "sent"]
_SENT_COLUMNS: Final = ["submission_id", "id_sha256", "id_size", "selfie_size", "tags"]
_SENT_SCHEMA: Final = pa.schema([pa.field(name, SUBMISSIONS.column(name).type) for name in _SENT_COLUMNS])


@dataclass(slots=True)
class FlattenSummary:
    """The result for one partition. Counts are rows, except `anomalies`: responses by code."""

    responses: int = 0
    completed: int = 0
    exact: int = 0
    """Completed responses that took the exact path."""
    verifications: int = 0
    checks: int = 0
    tags: int = 0
    files: int = 0
    drift: int = 0
    unreadable: int = 0
    """Completed responses that break the hard contract: they have no row, so the partition has an error."""
    without_submission: int = 0
    anomalies: Counter[str] = field(default_factory=Counter)
    source: str = ""
    """The identity of the input, as in the footers."""
    up_to_date: bool = False
    """Whether the tables were already made from this input, so that nothing was written."""


def flatten_partition(
    lake: Lake,
    date: str,
    pseudonymizer: Pseudonymizer,
    clear_tags: Collection[str],
    *,
    force: bool = False,
) -> FlattenSummary:
    """Writes the five tables of `date` from its responses and submissions.

    Writes nothing if they are up to date and readable, unless `force` is set. Without a lease, others may
    flatten the day at the same time: whoever finds a table replaced begins again.

    Raises :class:`KycError` if either is missing, unreadable, not sorted by id, or replaced while being read.
    """
    for _ in range(_ATTEMPTS - 1):
        with suppress(PartitionReplaced):
            return _flatten(lake, date, pseudonymizer, clear_tags, force=force)
    return _flatten(lake, date, pseudonymizer, clear_tags, force=force)


def _flatten(
    lake: Lake, date: str, pseudonymizer: Pseudonymizer, clear_tags: Collection[str], *, force: bool
) -> FlattenSummary:
    versions = [lake.version(table, date) for table in _INPUTS]
    source = source_of(lake, date)
    metadata = {
        "source": source,
        "contract_version": contract.VERSION,
        KEY_ID: pseudonymizer.key_id,
        "clear_tags": ",".join(sorted(clear_tags)),
        "code": code_identity(),
    }
    if not force and (known := _summary_of_current(lake, date, metadata)):
        return known
    summary = FlattenSummary(source=source)
    flattener = _Flattener(pseudonymizer, clear_tags)
    with ExitStack() as stack:
        writers = {table: stack.enter_context(lake.writer(table, date, metadata)) for table in _OUTPUTS}
        # Threads pay, because Arrow does much of the work without the GIL: see ADR 0007.
        batches = stack.enter_context(closing(_batches(lake, date)))
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=WORKERS))
        facts = {table: _RowGroups(writers[table]) for table in FACTS}
        for flattened in _map_in_order(pool, flattener.fast_rows, batches):
            for table, rows in flattener.all_rows(flattened, summary).items():
                facts[table].write(rows)
        for groups in facts.values():  # most days have less than one row group
            groups.flush()
        writers[CONTRACT_DRIFT].write(flattener.drift.rows())
        summary.verifications, summary.checks, summary.tags, summary.files, summary.drift = (
            writer.rows for writer in writers.values()
        )
        for writer in writers.values():
            writer.add_metadata({_SUMMARY_KEY: msgspec.json.encode(summary).decode()})
        if [lake.version(table, date) for table in _INPUTS] != versions:
            raise KycError(
                f"the responses of {date} were replaced while they were read: {run_day_again(date)}"
            )
    # Otherwise the freed memory that Arrow keeps would grow with each day of a run.
    pa.default_memory_pool().release_unused()
    return summary


def _summary_of_current(lake: Lake, date: str, metadata: Mapping[str, str]) -> FlattenSummary | None:
    """The summary of the tables in the lake; None if one is missing, unreadable or not up to date."""
    try:
        text = lake.metadata(VERIFICATIONS, date).get(_SUMMARY_KEY, "")
        expected = {**metadata, _SUMMARY_KEY: text}
        if not text or any(lake.metadata(table, date) != expected for table in _OUTPUTS):
            return None
        for table in _OUTPUTS:
            deque(lake.batches(table, date), maxlen=0)  # a damaged page raises
    except KycError:
        return None
    summary = msgspec.json.decode(text, type=FlattenSummary, dec_hook=lambda _type, value: Counter(value))
    summary.up_to_date = True
    return summary


class _Flattener:
    """Flattens batches: most responses by the fast path, the rest by the exact one."""

    def __init__(self, pseudonymizer: Pseudonymizer, clear_tags: Collection[str]) -> None:
        self.drift = DriftCounter()
        self._blocks = BlockFlattener(pseudonymizer, clear_tags)
        self._records = RecordFlattener(pseudonymizer, clear_tags, self.drift)

    def fast_rows(self, batch: "_Batch") -> "_Flattened":
        """The rows of the responses that the fast path takes. Thread-safe."""
        block = select(batch.ids, batch.texts, batch.sent)
        is_left = np.ones(len(batch.texts), dtype=np.bool_)
        is_left[block["position"].to_numpy()] = False
        return _Flattened(batch, np.flatnonzero(is_left), self._blocks.flatten(block))

    def all_rows(self, flattened: "_Flattened", summary: FlattenSummary) -> dict[Table, pa.Table]:
        """The rows of the whole batch, in the order of its submissions. Call it with the batches in order."""
        batch, left, tables = flattened.batch, flattened.left, flattened.tables
        summary.responses += batch.responses
        summary.completed += len(batch.texts)
        summary.exact += len(left)
        if len(left):
            rows = self._exact_rows(left, batch, summary)
            tables = {
                table: _in_order(pa.concat_tables([fast, rows.table(table)]), batch.ids)
                for table, fast in tables.items()
            }
        return tables

    def _exact_rows(self, left: Whole, batch: "_Batch", summary: FlattenSummary) -> Rows:
        rows = Rows()
        for index, submission in zip(left, batch.sent.take(left).to_pylist(), strict=True):
            submission_id = batch.ids[index].as_py()
            known = submission["id_sha256"] is not None
            summary.without_submission += not known
            try:
                received = contract.reread(batch.texts[index].as_py() or "")
            except ContractBroken:
                summary.unreadable += 1
                self.drift.add("result", DriftKind.TYPE_MISMATCH, submission_id)
                continue
            for name in ("tags", WITHHELD):
                submission[name] = dict(submission[name] or [])
            self._records.add(rows, submission_id, received, SentSubmission(**submission) if known else None)
        for codes in rows.columns[VERIFICATIONS.name]["anomalies"]:
            summary.anomalies.update(codes)
        return rows


def _in_order(rows: pa.Table, ids: ArrowColumn) -> pa.Table:
    """`rows` in the order of `ids`; the rows of one response keep their order."""
    places: ArrowColumn = pc.index_in(rows["submission_id"], value_set=ids)
    order: ArrowColumn = pa.array(np.argsort(np.asarray(places), kind="stable"))
    return rows.take(order)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Completed responses, with what was sent for each."""

    responses: int
    ids: ArrowColumn
    texts: ArrowColumn
    sent: pa.Table


@dataclass(frozen=True, slots=True)
class _Flattened:
    """The rows of a batch, without the responses at the positions `left`."""

    batch: _Batch
    left: Whole
    tables: dict[Table, pa.Table]


def _batches(lake: Lake, date: str) -> Generator[_Batch, None, None]:
    size = _batch_rows(
        max(lake.row_count(table, date) for table in _INPUTS),
        lake.byte_count(VERIFICATION_RESPONSES, date),
    )
    submissions = _Submissions(lake, date, size)
    for responses in _sorted_batches(lake, VERIFICATION_RESPONSES, date, _RESPONSE_COLUMNS, size):
        is_completed = pc.equal(responses["outcome"], pa.scalar(Outcome.COMPLETED.value))
        completed = responses.filter(is_completed)
        ids = completed["submission_id"]
        sent = as_sent(submissions.of(ids), completed["sent"])
        yield _Batch(responses.num_rows, ids, completed["response"], sent)
    submissions.read_rest()


def as_sent(submissions: pa.Table, differences: ArrowColumn) -> pa.Table:
    """The rows of `submissions` as they were sent; withheld tags are in a column of their own."""
    if differences.null_count == len(differences):
        no_text = pa.array([], pa.string())
        offsets: ArrowColumn = pa.array(np.zeros(submissions.num_rows + 1, np.int32))
        return submissions.append_column(WITHHELD, pa.MapArray.from_arrays(offsets, no_text, no_text))
    rows = submissions.to_pylist()
    for row, text in zip(rows, differences.to_pylist(), strict=True):
        sent = read_sent(text).echoed(row)
        withheld = [(name, value) for name, value in row["tags"] or () if name not in sent["tags"]]
        row |= sent | {"tags": [*sent["tags"].items()], WITHHELD: withheld}
    schema = submissions.schema.append(pa.field(WITHHELD, STRING_MAP))
    return pa.Table.from_pylist(rows, schema=schema)


def _batch_rows(rows: int, size: int) -> int:
    """Rows of each batch of a day with `rows` rows and `size` bytes of responses.

    Batches are of equal size, and each worker gets the same number of them.
    """
    rounds = math.ceil(max(1, rows / BATCH_ROWS, size / BATCH_BYTES) / WORKERS)
    return math.ceil(max(1, rows) / (WORKERS * rounds))


def _map_in_order(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
    """The results of `work` in the order of `items`, computed in parallel."""
    under_way: deque[Future[_Result]] = deque()
    for item in items:
        under_way.append(pool.submit(work, item))
        if len(under_way) > WORKERS:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


class _Submissions:
    """The day's submissions, read forward along with the responses."""

    def __init__(self, lake: Lake, date: str, size: int) -> None:
        self._batches = _sorted_batches(lake, SUBMISSIONS, date, _SENT_COLUMNS, size)
        self._ahead: pa.RecordBatch | None = None

    def of(self, ids: ArrowColumn) -> pa.Table:
        """What was sent for `ids`, which must be greater than all earlier ones; NULL for an unknown id."""
        found: list[pa.RecordBatch] = []
        while len(ids):
            batch = self._ahead or next(self._batches, None)
            self._ahead = None
            if batch is None:
                break
            found.append(batch.filter(pc.is_in(batch["submission_id"], value_set=ids)))
            if pc.greater(batch["submission_id"][-1], ids[-1]).as_py():
                self._ahead = batch
                break
        sent = pa.Table.from_batches(found) if found else _SENT_SCHEMA.empty_table()
        rows: ArrowColumn = pc.index_in(ids, value_set=sent["submission_id"])
        return sent.drop_columns("submission_id").take(rows)

    def read_rest(self) -> None:
        """Reads the rest, which checks that the whole table is sorted."""
        for _ in self._batches:
            pass


class _RowGroups:
    """Collects rows into row groups of DuckDB's size, and writes these."""

    def __init__(self, writer: PartitionWriter) -> None:
        self._writer = writer
        self._pending: list[pa.Table] = []
        self._count = 0

    def write(self, rows: pa.Table) -> None:
        """Adds rows; writes each full row group."""
        self._pending.append(rows)
        self._count += rows.num_rows
        while self._count >= ROW_GROUP_ROWS:
            self.flush(ROW_GROUP_ROWS)

    def flush(self, count: int | None = None) -> None:
        """Writes `count` rows, or all."""
        count = self._count if count is None else count
        if count:
            rows = pa.concat_tables(self._pending)
            self._pending = [rows.slice(count)]
            self._count -= count
            self._writer.write(rows.slice(0, count))


def _sorted_batches(
    lake: Lake, table: Table, date: str, columns: list[str], size: int
) -> Iterator[pa.RecordBatch]:
    """Non-empty batches of at most `size` rows, in strictly increasing order of `submission_id`."""
    last: pa.Array[pa.StringScalar] = pa.array([], pa.string())
    for batch in lake.batches(table, date, columns, size):
        if batch.num_rows == 0:
            continue
        ids = pa.concat_arrays([last, batch["submission_id"]])
        if not pc.all(pc.less(ids[:-1], ids[1:]), min_count=0).as_py():
            raise KycError(
                f"{table.name} partition {date} is not sorted by submission_id: {run_day_again(date)}"
            )
        last = ids[-1:]
        yield batch


def source_of(lake: Lake, date: str) -> str:
    """SHA-256 (hex) of the partition's responses and submissions: the footers' `source`."""
    parts = (lake.sha256(table, date) for table in _INPUTS)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def is_flattened(lake: Lake, date: str) -> bool:
    """Whether the curated tables were made from the partition's present responses and submissions.

    Raises :class:`KycError` if one of the partitions is missing or unreadable.
    """
    return lake.metadata(VERIFICATIONS, date).get("source") == source_of(lake, date)
