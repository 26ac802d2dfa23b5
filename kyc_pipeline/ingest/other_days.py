"""The rows of other days that matter to a day: those with one of its ids or one of its pairs of documents.

The ledger names the days that have them, so that only these are read. What such a day's partition does not
confirm becomes free, unless a run works on that day: until it ends, the ledger's word counts.
"""

import contextlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from kyc_pipeline.ingest.owners import COLUMNS, DOCUMENTS, Owners
from kyc_pipeline.ingest.state import Records
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, Lake, PartitionMissing, duckdb_path
from kyc_pipeline.lake.tables import SUBMISSIONS
from kyc_pipeline.ledger.owners import Owner, portions

NOT_CONFIRMED: Final = ""
"""Stands for the digest of a day with rows that only the ledger knows."""
_NAMED: Final = pa.schema([(name, pa.string()) for name in Owner._fields])
_SENT: Final = """
SELECT submission_id, $date AS date, content_sha256, @documents AS documents_sha256 FROM sent
""".replace("@documents", DOCUMENTS)
_FRESH: Final = """
SELECT submission_id, $date AS date, arg_min(content_sha256, seq) AS content_sha256,
       arg_min(@documents, seq) AS documents_sha256
FROM candidate ANTI JOIN sent USING (submission_id)
WHERE problem IS NULL
GROUP BY submission_id
""".replace("@documents", DOCUMENTS)
"""What the day would own and was not sent. The first row of an id decides."""
_TABLES: Final = """
CREATE TEMP TABLE seen (
    submission_id VARCHAR, date VARCHAR, content_sha256 VARCHAR, documents_sha256 VARCHAR
);
CREATE TEMP TABLE hashes AS
SELECT DISTINCT hash(id_sha256, selfie_sha256) FROM candidate WHERE problem IS NULL;
"""
_ADD_ROWS: Final = """
INSERT INTO seen
SELECT submission_id, $date, content_sha256, @documents FROM batch
WHERE submission_id IN (SELECT submission_id FROM candidate)
   OR hash(id_sha256, selfie_sha256) IN (FROM hashes)
""".replace("@documents", DOCUMENTS)
_UNCONFIRMED: Final = """
SELECT * FROM named ANTI JOIN seen USING (submission_id, date) WHERE submission_id IS NOT NULL
UNION ALL
SELECT * FROM named ANTI JOIN seen USING (documents_sha256, date) WHERE submission_id IS NULL
"""


def load_seen(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    planned: Lake | None,
    date: str,
    owners: Owners | None,
    folder: Path,
) -> Mapping[str, str]:
    """Creates `seen` in a database that has `candidate` and `sent`; an ingest reserves the ids.

    Returns the digest of the accepted ids of each day that it read, or :data:`NOT_CONFIRMED`. Days in
    `planned` take precedence over those in `lake`. Without `owners`, all days are read. Writes to `folder`.
    """
    connection.execute(_TABLES)
    lakes = dict.fromkeys(lake.dates(SUBMISSIONS), lake) if owners is None else dict[str, Lake]()
    if owners is not None and owners.held is None:
        lakes |= dict.fromkeys(owners.unknown_days(date), lake)
    if planned is not None:
        lakes |= dict.fromkeys(planned.dates(SUBMISSIONS), planned)
    records = Records(lake, planned)
    settled: set[str] = set()
    for attempt in itertools.count():
        path = folder / f"named-{attempt}.parquet"
        _write_named(connection, date, owners, path)
        connection.read_parquet(duckdb_path(path)).create_view("named", replace=True)
        named = dict.fromkeys(_days(connection, "FROM named"), lake)
        digests = _read_days(connection, named | lakes, date, records)
        unconfirmed = _days(connection, _UNCONFIRMED)
        if owners is None or owners.held is None:
            return digests
        left = [day for day in unconfirmed if day not in settled]
        settled.update(left)
        if not [day for day in left if owners.settle(day)]:
            break
    if unconfirmed:
        connection.execute(f"INSERT INTO seen {_UNCONFIRMED}")
    return digests | dict.fromkeys(unconfirmed, NOT_CONFIRMED)


def _write_named(connection: duckdb.DuckDBPyConnection, date: str, owners: Owners | None, path: Path) -> None:
    """Writes what other days own of this day's ids and pairs of documents, by the ledger."""
    with pq.ParquetWriter(path, _NAMED) as writer:
        if owners is None:
            return
        for query in (_SENT, _FRESH):
            rows = connection.sql(query, params={"date": date}).to_arrow_reader(ROW_GROUP_ROWS)
            wanted = (Owner(**row) for batch in rows for row in batch.to_pylist())
            found = owners.others(date, wanted, sent=query is _SENT)
            for some in portions(found, ROW_GROUP_ROWS):
                writer.write_table(pa.Table.from_pylist([row._asdict() for row in some], schema=_NAMED))


def _read_days(
    connection: duckdb.DuckDBPyConnection, lakes: Mapping[str, Lake], date: str, records: Records
) -> dict[str, str]:
    """Fills `seen`; returns the digest of each day's accepted ids."""
    connection.execute("DELETE FROM seen")
    digests = {}
    for day, lake in sorted(lakes.items()):
        if day == date:
            continue
        with contextlib.suppress(PartitionMissing):
            # Before the rows: if the day changes meanwhile, its digest no longer matches.
            digests[day] = records.of(day).accepted
            for batch in lake.batches(SUBMISSIONS, day, COLUMNS, ROW_GROUP_ROWS):
                connection.register("batch", batch)
                connection.execute(_ADD_ROWS, {"date": day})
    return digests


def _days(connection: duckdb.DuckDBPyConnection, query: str) -> list[str]:
    rows = connection.execute(f"SELECT DISTINCT date FROM ({query}) ORDER BY date").fetchall()  # noqa: S608
    return [day for (day,) in rows]
