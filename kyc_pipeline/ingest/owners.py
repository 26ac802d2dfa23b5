"""Reserves the ids of a day in the ledger before the day is published, and frees those that it gives up.

The ledger decides which day owns an id (`ledger/owners.py`); its table may have more ids than the lake, never
fewer. So a day whose partition does not have an id that it owns is either being published or left behind by
an ingest that was killed: whoever can take its lease makes the ledger equal to the lake.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from kyc_pipeline import quiet_duckdb
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, Lake, Partition, PartitionMissing
from kyc_pipeline.lake.tables import SUBMISSIONS
from kyc_pipeline.ledger import owners
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import HeldLease, PartitionBusy, hold
from kyc_pipeline.ledger.locks import LOCK_SECONDS, POLL_SECONDS
from kyc_pipeline.ledger.models import Lease
from kyc_pipeline.ledger.owners import Known, Owner
from kyc_pipeline.wording import plural

MEMORY_LIMIT: Final = "384MB"
"""Of DuckDB, while it compares ids."""
DOCUMENTS: Final = "sha256(id_sha256 || selfie_sha256)"
"""As :func:`documents_sha256`, in DuckDB."""
COLUMNS: Final = ["submission_id", "content_sha256", "id_sha256", "selfie_sha256"]


def documents_sha256(id_sha256: str, selfie_sha256: str) -> str:
    """What the ledger has of a pair of documents."""
    return hashlib.sha256((id_sha256 + selfie_sha256).encode()).hexdigest()


@dataclass(frozen=True)
class Owners:
    """The owners of ids, as an ingest under the lease `held` uses them; read-only without one."""

    lake: Lake
    ledger: Ledger
    held: HeldLease | None = None

    def unknown_days(self, date: str) -> dict[str, str]:
        """The days but `date` whose ids the ledger may not know, with the versions of their partitions."""
        known = owners.known_versions(self.ledger)
        versions = {day: _version(each) for day, each in self.lake.partitions(SUBMISSIONS).items()}
        return {
            day: version for day, version in versions.items() if day != date and known.get(day) != version
        }

    def others(self, date: str, rows: Iterable[Owner], *, sent: bool) -> Iterator[Owner]:
        """Who else has one of the ids or pairs of documents. With a lease, the day gets the free ones."""
        if self.held is not None:
            return owners.reserve(self.ledger, self.held.lease, rows, sent=sent)
        return owners.find(self.ledger, date, rows) if self.ledger.exists() else iter(())

    @contextlib.contextmanager
    def publishing(self) -> Iterator[Callable[[int], None]]:
        """The block reserves ids and publishes the day, then calls what it gets with the number of rows.

        Raises :class:`LeaseLost` if another run has taken the lease, and :class:`KycError` if another day has
        an id that was published.
        """
        assert self.held is not None
        lease = self.held.lease
        owners.add(self.ledger, self._unknown_rows(lease.partition_date))
        owners.begin(self.ledger, lease)
        try:
            yield lambda rows: _published(self.lake, self.ledger, lease, rows)
        except Exception:
            with contextlib.suppress(KycError):
                _settle(self.lake, self.ledger, lease)
            raise

    def _unknown_rows(self, date: str) -> Iterator[Owner | Known]:
        for day, version in self.unknown_days(date).items():
            for batch in self.lake.batches(SUBMISSIONS, day, COLUMNS, ROW_GROUP_ROWS):
                yield from _owners(day, batch)
            yield Known(day, version)

    def settle(self, day: str) -> bool:
        """Makes the ledger equal to the lake for another day; False if a run works on the day."""
        assert self.held is not None
        try:
            with hold(self.ledger, day, self.held.lease.run_id) as other:
                _settle(self.lake, self.ledger, other.lease)
        except PartitionBusy:
            return False
        return True


def wait_for_ingests(lake: Lake, ledger: Ledger, run_id: str, *, wait_seconds: float = LOCK_SECONDS) -> None:
    """Waits until each ingest that publishes a day now has ended; settles the days of those that were killed.

    Raises :class:`PartitionBusy` with the holder's name after `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    for day_and_token in owners.days_being_published(ledger):
        while day_and_token in owners.days_being_published(ledger):
            try:
                with hold(ledger, day_and_token[0], run_id) as held:
                    _settle(lake, ledger, held.lease)
                break
            except PartitionBusy as error:
                if time.monotonic() >= deadline:
                    raise PartitionBusy(f"waited {wait_seconds:.0f} s for an ingest: {error}") from error
            time.sleep(POLL_SECONDS)


def _published(lake: Lake, ledger: Ledger, lease: Lease, rows: int) -> None:
    """Frees the ids that the day has given up; `rows` is what its partition has now."""
    # The ledger has at least the ids of the partition, so equal numbers mean equal ids.
    if owners.count_ids(ledger, lease.partition_date) == rows:
        _note_version(lake, ledger, lease)
        return
    _settle(lake, ledger, lease)
    if (missing := rows - owners.count_ids(ledger, lease.partition_date)) > 0:
        day = lease.partition_date
        raise KycError(f"another day has accepted {plural(missing, 'id')} of {day}: run {day} again")


def _settle(lake: Lake, ledger: Ledger, lease: Lease) -> None:
    """Makes the ledger equal to the day's partition. Raises :class:`LeaseLost`."""
    day = lease.partition_date
    with quiet_duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "threads": 1}) as connection:
        connection.execute("CREATE TEMP TABLE known (submission_id VARCHAR)")
        connection.execute("CREATE TEMP TABLE present (submission_id VARCHAR)")
        for ids in owners.read_ids(ledger, day):
            connection.register("batch", pa.table({"submission_id": pa.array(ids, pa.string())}))
            connection.execute("INSERT INTO known FROM batch")
        with contextlib.suppress(PartitionMissing):
            for batch in lake.batches(SUBMISSIONS, day, COLUMNS, ROW_GROUP_ROWS):
                owners.add(ledger, _owners(day, batch))
                connection.register("batch", batch.select(["submission_id"]))
                connection.execute("INSERT INTO present FROM batch")
        rows = connection.execute("FROM known ANTI JOIN present USING (submission_id)").fetchall()
    owners.release(ledger, lease, (key for (key,) in rows))
    _note_version(lake, ledger, lease)


def _note_version(lake: Lake, ledger: Ledger, lease: Lease) -> None:
    partition = lake.partitions(SUBMISSIONS, lease.partition_date).get(lease.partition_date)
    owners.end(ledger, lease, None if partition is None else _version(partition))


def _owners(day: str, batch: pa.RecordBatch) -> Iterator[Owner]:
    columns = (batch[name].to_pylist() for name in COLUMNS)
    for key, content, id_sha256, selfie_sha256 in zip(*columns, strict=True):
        yield Owner(key, day, content, documents_sha256(id_sha256, selfie_sha256))


def _version(partition: Partition) -> str:
    return " ".join(partition.version)
