"""Decides which row owns a submission id: within a day, across days, and against rows that were sent.

An id belongs forever to the first row accepted with it: within a day, the first by manifest name and row;
across days, that of the day ingested first. With `KYC_DUPLICATE_DOCUMENTS=reject`, the same applies to a pair
of documents. A row that may have been sent is never changed or dropped, since it may have been paid for.

The ledger decides which day comes first (`owners.py`, `other_days.py`). DuckDB joins rows in bounded memory.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kyc_pipeline import quiet_duckdb
from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest.other_days import load_seen
from kyc_pipeline.ingest.owners import DOCUMENTS, MEMORY_LIMIT, Owners
from kyc_pipeline.ingest.state import LEFT_TO_OWNER, Digest
from kyc_pipeline.lake.storage import ROW_GROUP_ROWS, Lake, PartitionUnreadable, duckdb_path
from kyc_pipeline.lake.tables import STATE_KEY, SUBMISSIONS, VERIFICATION_RESPONSES, ResponsesState
from kyc_pipeline.privacy.erased import ErasedSubjects
from kyc_pipeline.vocabulary import SUBMISSION_TAG, Outcome

SORTED_ROWS: Final = 200_000
ROWS_AT_ONCE: Final = 20_000
"""How many earlier rows to compare at a time with what was sent."""
MAX_THREADS: Final = 2
CANDIDATES_FILE: Final = "candidates.parquet"
"""Rows (`rows.CANDIDATES`) that pass every rule that needs no other row."""
REJECTED_FILE: Final = "rejected.parquet"
"""Rows (`rejected_submissions`) that break such a rule."""
_SURELY_NOT_SENT: Final = (Outcome.NOT_ATTEMPTED.value, Outcome.FAILED.value)

_DECIDE: Final = """
CREATE TEMP VIEW elsewhere AS
SELECT submission_id, arg_min(content_sha256, date) AS content_sha256, min(date) AS date
FROM seen WHERE submission_id IN (SELECT submission_id FROM candidate)
GROUP BY submission_id;

-- Ids that occur more than once or were seen before; most ids are neither.
CREATE TEMP TABLE contested AS
SELECT submission_id FROM candidate GROUP BY submission_id HAVING count(*) > 1
UNION SELECT submission_id FROM sent
UNION SELECT submission_id FROM elsewhere;

-- Documents may be deleted after verification: then paths and tags decide whether a row is the one sent.
CREATE TEMP TABLE same_without_document AS
SELECT c.seq, s.content_sha256
FROM candidate c JOIN sent s USING (submission_id)
WHERE c.problem = 'file_not_found' AND c.id_file = s.id_file AND c.selfie_file = s.selfie_file
  AND map_entries(c.tags) = map_entries(s.tags)
  AND coalesce(c.id_sha256, s.id_sha256) = s.id_sha256
  AND coalesce(c.selfie_sha256, s.selfie_sha256) = s.selfie_sha256;

-- One verdict for each row that has a problem or a contested id; the owner's `reason` is NULL.
CREATE TEMP TABLE verdict AS
WITH known AS (
    SELECT c.seq, c.submission_id, c.problem, c.problem_detail,
           c.manifest || ' row ' || c.manifest_row AS place,
           s.content_sha256 AS sent_content, coalesce(c.content_sha256, l.content_sha256) AS content
    FROM candidate c
    LEFT JOIN (SELECT submission_id, content_sha256 FROM sent) s USING (submission_id)
    LEFT JOIN same_without_document l USING (seq)
    WHERE c.problem IS NOT NULL OR c.submission_id IN (FROM contested)
), placed AS (
    SELECT k.*, o.date AS other_date,
           coalesce(k.sent_content, o.content_sha256, first_value(k.content) OVER rows_of_id)
               AS owner_content,
           first_value(k.content) OVER rows_of_id AS first_content,
           first_value(k.place) OVER rows_of_id AS first_place,
           row_number() OVER (PARTITION BY k.submission_id, k.content ORDER BY k.seq) AS nth
    FROM known k LEFT JOIN elsewhere o USING (submission_id)
    WINDOW rows_of_id AS (
        PARTITION BY k.submission_id ORDER BY k.content IS NULL, k.content <> k.sent_content, k.seq
    )
)
SELECT seq, submission_id,
       CASE WHEN content IS NULL THEN problem
            WHEN content <> owner_content THEN 'conflicting_submission_id'
            WHEN nth > 1 OR (sent_content IS NULL AND other_date IS NOT NULL) THEN 'duplicate_submission_id'
       END AS reason,
       CASE WHEN content IS NULL THEN problem_detail
            -- The same before and after the owner was sent: then the partition stays as it is.
            WHEN sent_content = first_content THEN 'the submission is in ' || first_place
            WHEN sent_content IS NOT NULL THEN 'the submission may have been sent already'
            WHEN other_date IS NOT NULL THEN 'the submission was accepted on ' || other_date
            ELSE 'the submission is in ' || first_place
       END AS detail
FROM placed;

-- Accepted rows that were certainly not sent and have the two documents of another submission.
CREATE TEMP TABLE duplicate AS
WITH fresh AS (
    SELECT seq, submission_id, @documents AS documents_sha256, manifest || ' row ' || manifest_row AS place
    FROM candidate
    WHERE problem IS NULL AND submission_id NOT IN (SELECT submission_id FROM sent)
      AND seq NOT IN (SELECT seq FROM verdict WHERE reason IS NOT NULL)
), before AS (
    SELECT documents_sha256, min(date) AS date
    FROM (SELECT documents_sha256, date FROM seen UNION ALL SELECT @documents, $date FROM sent)
    GROUP BY ALL
)
SELECT seq, submission_id, 'duplicate_documents' AS reason,
       'both documents are those of a submission ' || CASE WHEN date IS NULL THEN 'in ' || first_place
           ELSE 'of ' || date END AS detail
FROM (
    SELECT *, first_value(place) OVER pair AS first_place, row_number() OVER pair AS nth
    FROM fresh WINDOW pair AS (PARTITION BY documents_sha256 ORDER BY seq)
) LEFT JOIN before USING (documents_sha256)
WHERE nth > 1 OR date IS NOT NULL;
""".replace("@documents", DOCUMENTS)

_REJECT_DUPLICATES: Final = """
DELETE FROM verdict WHERE seq IN (SELECT seq FROM duplicate);
INSERT INTO verdict SELECT * FROM duplicate;
"""

_COLUMNS: Final = ", ".join(column.name for column in SUBMISSIONS.columns)
_SUBMISSIONS: Final = f"""
SELECT * FROM (
SELECT {_COLUMNS} FROM candidate
WHERE problem IS NULL AND seq NOT IN (SELECT seq FROM verdict WHERE reason IS NOT NULL)
UNION ALL BY NAME
SELECT s.* REPLACE (c.submitted_at AS submitted_at, c.manifest AS manifest, c.manifest_row AS manifest_row)
FROM sent s
JOIN verdict v USING (submission_id)
JOIN candidate c ON c.seq = v.seq
WHERE v.reason IS NULL AND c.problem IS NOT NULL
UNION ALL BY NAME
SELECT * FROM sent
WHERE submission_id NOT IN (SELECT submission_id FROM verdict WHERE reason IS NULL)
) WHERE submission_id >= getvariable('low') AND submission_id < getvariable('high')
ORDER BY submission_id
"""  # noqa: S608 - the column names are the data dictionary's

_KEPT: Final = """
SELECT submission_id FROM sent
WHERE submission_id NOT IN (SELECT submission_id FROM verdict WHERE reason IS NULL)
"""

_REJECTED: Final = """
SELECT submission_id, reason, detail, manifest, manifest_row FROM rejected
UNION ALL
SELECT c.submission_id, v.reason, v.detail, c.manifest, c.manifest_row
FROM candidate c JOIN verdict v USING (seq)
WHERE v.reason IS NOT NULL
ORDER BY manifest, manifest_row
"""


class Ownership:
    """Computes the day's verdicts. Use it in a `with` block, under the day's lease."""

    def __init__(
        self,
        lake: Lake,
        date: str,
        folder: Path,
        erased: ErasedSubjects | None,
        planned: Lake | None = None,
        owners: Owners | None = None,
        *,
        reject_duplicate_documents: bool = False,
    ) -> None:
        """`folder` has the day's rows in two files. For `planned` and `owners`, see :mod:`other_days`."""
        self._lake = lake
        self._date = date
        self._connection = quiet_duckdb.connect(
            config={
                "memory_limit": MEMORY_LIMIT,
                # Each thread needs memory of its own.
                "threads": min(MAX_THREADS, os.cpu_count() or 1),
                "temp_directory": str(folder / "spill"),
            }
        )
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.read_parquet(duckdb_path(folder / CANDIDATES_FILE), file_row_number=True).project(
            "* EXCLUDE (file_row_number), file_row_number AS seq"
        ).create_view("candidate")
        self._connection.read_parquet(duckdb_path(folder / REJECTED_FILE)).create_view("rejected")
        self._load_sent(folder / "sent.parquet", erased)
        self._digests = load_seen(self._connection, lake, planned, date, owners, folder)
        self._connection.execute(_DECIDE, {"date": date})
        ((self.duplicate_documents,),) = self._connection.execute("SELECT count(*) FROM duplicate").fetchall()
        """Accepted rows that were not sent and have the two documents of another submission."""
        if reject_duplicate_documents:
            self._connection.execute(_REJECT_DUPLICATES)
            self.duplicate_documents = 0

    def __enter__(self) -> "Ownership":
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def submissions(self) -> Iterator[pa.RecordBatch]:
        """Rows of `submissions`, sorted by id: one id range at a time, so that each sort fits in memory."""
        for low, high in itertools.pairwise(self._bounds()):
            self._connection.execute("SET VARIABLE low = $low", {"low": low})
            self._connection.execute("SET VARIABLE high = $high", {"high": high})
            yield from self._batches(_SUBMISSIONS)

    def rejected(self) -> Iterator[pa.RecordBatch]:
        """Rows of `rejected_submissions`, sorted by manifest and row."""
        return self._batches(_REJECTED)

    def reasons(self) -> list[tuple[str, int]]:
        """Number of rejected manifest rows by reason."""
        query = f"SELECT reason, count(*) FROM ({_REJECTED}) GROUP BY reason ORDER BY reason"  # noqa: S608
        return self._connection.execute(query).fetchall()

    def kept(self) -> int:
        """Number of rows that may have been sent and whose id has no accepted manifest row."""
        ((rows,),) = self._connection.execute(f"SELECT count(*) FROM ({_KEPT})").fetchall()  # noqa: S608
        return int(rows)

    def changed(self) -> int:
        """How many of :meth:`kept` have a manifest row, which is rejected."""
        ((rows,),) = self._connection.execute(
            f"SELECT count(*) FROM ({_KEPT}) SEMI JOIN ({_REJECTED}) USING (submission_id)"  # noqa: S608
        ).fetchall()
        return int(rows)

    def owners(self) -> dict[str, tuple[str, str]]:
        """The other days that own ids of rejected rows: :class:`~kyc_pipeline.ingest.state.DayFooter`."""
        owned = self._connection.sql(
            """
            SELECT DISTINCT e.date, e.submission_id, e.content_sha256
            FROM verdict v JOIN elsewhere e USING (submission_id)
            WHERE v.reason IN (SELECT unnest($reasons))
            ORDER BY ALL
            """,
            params={"reasons": list(LEFT_TO_OWNER)},
        ).to_arrow_table()
        return {
            date: (self._digests[date], str(Digest().add(owned.filter(pc.field("date") == date))))
            for date in sorted(set(owned["date"].to_pylist()))
        }

    def _batches(self, query: str) -> Iterator[pa.RecordBatch]:
        yield from self._connection.sql(query).to_arrow_reader(ROW_GROUP_ROWS)

    def _bounds(self) -> list[str]:
        """The bounds of id ranges with about :data:`SORTED_ROWS` rows each, which together cover all ids."""
        ((rows,),) = self._connection.execute(
            "SELECT (SELECT count(*) FROM candidate) + (SELECT count(*) FROM sent)"
        ).fetchall()
        parts = -(-rows // SORTED_ROWS)
        inner: list[str] = []
        if parts > 1:
            ((inner,),) = self._connection.execute(
                """
                SELECT quantile_disc(submission_id, $at::DOUBLE[])
                FROM (SELECT submission_id FROM candidate UNION ALL SELECT submission_id FROM sent)
                """,
                {"at": [part / parts for part in range(1, parts)]},
            ).fetchall()
        # Every character of an id sorts before "~".
        return ["", *inner, "~"]

    def _load_sent(self, path: Path, erased: ErasedSubjects | None) -> None:
        """Creates `sent`: the day's earlier rows that may have been sent."""
        with pq.ParquetWriter(path, SUBMISSIONS.schema) as writer:
            for batch in self._sent_batches():
                if erased is not None:
                    rows = batch.select(["submission_id", "tags"]).to_pylist()
                    keep = [
                        not erased({**dict(row["tags"]), SUBMISSION_TAG: row["submission_id"]})
                        for row in rows
                    ]
                    batch = batch.filter(pa.array(keep, pa.bool_()))
                writer.write_batch(batch.cast(SUBMISSIONS.schema))
        self._connection.read_parquet(duckdb_path(path)).create_view("sent")

    def _sent_batches(self) -> Iterator[pa.RecordBatch]:
        lake, date = self._lake, self._date
        # Without responses nothing was sent, so a damaged partition can simply be replaced.
        if not (lake.exists(SUBMISSIONS, date) and lake.exists(VERIFICATION_RESPONSES, date)):
            return
        try:
            if lake.metadata(VERIFICATION_RESPONSES, date).get(STATE_KEY) == ResponsesState.DISPATCHING:
                yield from lake.batches(SUBMISSIONS, date)
                return
            self._connection.execute("CREATE TEMP TABLE was_sent (submission_id VARCHAR)")
            for batch in lake.batches(
                VERIFICATION_RESPONSES, date, ["submission_id", "outcome"], ROWS_AT_ONCE
            ):
                is_left = pc.is_in(batch["outcome"], value_set=pa.array(_SURELY_NOT_SENT))
                self._connection.register("batch", batch.filter(pc.invert(is_left)))
                self._connection.execute("INSERT INTO was_sent SELECT submission_id FROM batch")
            for batch in lake.batches(SUBMISSIONS, date, batch_size=ROWS_AT_ONCE):
                self._connection.register("batch", batch.select(["submission_id"]))
                sent = self._connection.sql("FROM batch SEMI JOIN was_sent USING (submission_id)")
                ids = sent.to_arrow_table()["submission_id"]
                yield batch.filter(pc.is_in(batch["submission_id"], value_set=ids))
        except PartitionUnreadable as error:
            raise KycError(
                f"{error}; until then, the day is not ingested, because its rows may have been sent"
            ) from error
