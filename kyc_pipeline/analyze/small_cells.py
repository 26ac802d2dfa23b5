"""Hides small cells: companies and values of dimensions with fewer than `KYC_MIN_CELL` people on a day.

Hidden values become SUPPRESSED in the rows, before anything is counted, so that every table adds up. What can
be computed from the published rows and counts is then a sum over whole *classes*: rows of a day that show the
same company and values. Each class with a hidden value has enough people, so no sum or difference of
published counts, from any tables, dimensions and totals, is that of a hidden cell. This requires hiding more
than the small cells (complementary suppression):

1. each cell with too few people, and the next smallest one if all hidden ones together have too few;
2. every value of a class that has a hidden value and too few people, and one more class if all such classes
   together have too few.

Both steps repeat until nothing changes. Fewer people remain together only if the whole day has too few, or if
there is nothing else to hide; their figures are then those of the day. A cell with a verdict needs enough
people *with* a verdict, because rates count no others. The model version is never hidden: it says nothing
about a person.
"""

from typing import Final

import duckdb

from kyc_pipeline.analyze.publish import EXACT
from kyc_pipeline.rules import SUPPRESSED

_VECTOR: Final = "list_prepend(company_id, map_values(dimensions)[:-2])"
"""The company and the values of a submission, without the model version, which is last."""
_SIZE: Final = """
    coalesce(
        nullif(sum(decided) + count(DISTINCT person) FILTER (WHERE is_decided), 0),
        sum(people) + count(DISTINCT person)
    ) AS size
"""
"""People of a cell: with a verdict, if there are any."""

_PREPARE: Final = f"""
    CREATE OR REPLACE TEMP TABLE classes AS
    SELECT row_number() OVER () AS class, date, vector
    FROM (
        SELECT DISTINCT date, {_VECTOR} AS vector
        FROM {EXACT}.submissions
    );
    CREATE OR REPLACE TEMP TABLE shown_values AS
    SELECT class, date, unnest(range(len(vector))) AS slice, unnest(vector) AS value FROM classes;
    CREATE OR REPLACE TEMP TABLE class_people AS
    WITH attempts AS (
        SELECT
            c.class,
            c.date,
            hash(coalesce(p.person::VARCHAR, s.submission_id)) AS person,
            bool_or(s.verified IS NOT NULL) AS is_decided
        FROM (SELECT *, {_VECTOR} AS vector FROM {EXACT}.submissions) AS s
        JOIN lake.submissions AS p ON p.date = s.date AND p.submission_id = s.submission_id
        JOIN classes AS c ON c.date = s.date AND c.vector = s.vector
        GROUP BY ALL
    ),
    counted AS (
        SELECT *, count(*) OVER (PARTITION BY date, person) AS classes FROM attempts
    )
    -- Few people are in several classes on one day: only they must be counted anew in every round.
    SELECT
        class,
        NULL::UBIGINT AS person,
        NULL::BOOLEAN AS is_decided,
        count(*) AS people,
        count(*) FILTER (WHERE is_decided) AS decided
    FROM counted
    WHERE classes = 1
    GROUP BY class
    UNION ALL
    SELECT class, person, is_decided, 0, 0
    FROM counted
    WHERE classes > 1
"""

_HIDE_CELLS: Final = f"""
    UPDATE shown_values AS v SET value = '{SUPPRESSED}'
    FROM (
        WITH cells AS (
            SELECT date, slice, value, {_SIZE}
            FROM shown_values JOIN class_people USING (class)
            GROUP BY ALL
        )
        SELECT
            *,
            max(size < $1) FILTER (WHERE value = '{SUPPRESSED}')
                OVER (PARTITION BY date, slice) AS needs_more,
            row_number() OVER (PARTITION BY date, slice ORDER BY value = '{SUPPRESSED}', size, value) AS place
        FROM cells
        QUALIFY value <> '{SUPPRESSED}' AND (size < $1 OR (needs_more AND place = 1))
    ) AS h
    WHERE h.date = v.date AND h.slice = v.slice AND h.value = v.value
"""

_HIDE_CLASSES: Final = f"""
    UPDATE shown_values AS v SET value = '{SUPPRESSED}'
    FROM (
        WITH shown AS (
            SELECT
                class,
                date,
                list(value ORDER BY slice) AS vector,
                bool_or(value = '{SUPPRESSED}') AS hides,
                bool_and(value = '{SUPPRESSED}') AS hides_all
            FROM shown_values
            GROUP BY class, date
        ),
        sizes AS (
            SELECT date, vector, any_value(hides) AS hides, any_value(hides_all) AS hides_all, {_SIZE}
            FROM shown JOIN class_people USING (class)
            GROUP BY date, vector
        ),
        chosen AS (
            SELECT
                *,
                max(size < $1) FILTER (WHERE hides_all) OVER (PARTITION BY date) AS needs_more,
                row_number() OVER (PARTITION BY date ORDER BY hides_all, size, vector) AS place
            FROM sizes
            QUALIFY NOT hides_all AND ((hides AND size < $1) OR (needs_more AND place = 1))
        )
        SELECT class FROM shown JOIN chosen USING (date, vector)
    ) AS h
    WHERE h.class = v.class AND v.value <> '{SUPPRESSED}'
"""

_COPY: Final = f"""
    CREATE TABLE submissions AS
    SELECT s.* EXCLUDE (vector) REPLACE (
        v.shown[1] AS company_id,
        map(
            map_keys(s.dimensions), list_append(v.shown[2:], s.dimensions['model_version'])
        ) AS dimensions
    )
    FROM (SELECT *, {_VECTOR} AS vector FROM {EXACT}.submissions) AS s
    JOIN (
        SELECT c.date, c.vector, list(v.value ORDER BY v.slice) AS shown
        FROM classes AS c JOIN shown_values AS v USING (class)
        GROUP BY c.date, c.vector
    ) AS v ON v.date = s.date AND v.vector = s.vector
    ORDER BY s.date, s.submission_id
"""


def publish_submissions(connection: duckdb.DuckDBPyConnection, min_cell: int) -> None:
    """Creates `submissions` from `exact.submissions`, with the small cells hidden.

    Reads `person` of `lake.submissions`; a submission without one counts as a person of its own.
    """
    connection.execute(_PREPARE)
    while sum(_updated(connection, step, min_cell) for step in (_HIDE_CELLS, _HIDE_CLASSES)):
        pass
    connection.execute(_COPY)
    for table in ("classes", "shown_values", "class_people"):
        connection.execute(f"DROP TABLE {table}")


def _updated(connection: duckdb.DuckDBPyConnection, sql: str, min_cell: int) -> int:
    return int(connection.execute(sql, [min_cell]).fetchall()[0][0])
