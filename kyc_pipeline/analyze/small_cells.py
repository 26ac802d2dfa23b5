"""Hides small cells: companies and values of dimensions with fewer than `KYC_MIN_CELL` people.

Hidden values become SUPPRESSED in the rows, before anything is counted, so that every table adds up. All that
can be computed from the published rows and counts are sums over whole *classes*: rows of a part, such as a
day, that show the same company and values. Each class with a hidden value has enough people. So no sum or
difference of published counts, from any tables, dimensions and totals, is that of a hidden cell. This
requires hiding more than the small cells (complementary suppression):

1. each cell with too few people, and the next smallest one if all hidden ones together have too few;
2. every value of a class that has a hidden value and too few people, and one more class if all such classes
   together have too few.

Both steps repeat until nothing changes. Fewer people remain together only if the whole part has too few, or
if there is nothing else to hide; their figures are then those of the part. A cell with a verdict needs enough
people *with* a verdict, because rates count no others. The model version of a submission is never hidden: it
says nothing about a person.
"""

from typing import Final

import duckdb

from kyc_pipeline.analyze.publish import EXACT
from kyc_pipeline.rules import SUPPRESSED

_VECTOR: Final = "list_prepend(company_id, map_values(dimensions)[:-2])"
"""The company and the values of a submission, without the model version, which is last."""
_SIZE: Final = """
    sum(firsts) + count(DISTINCT person) FILTER (WHERE is_first) AS n_first,
    sum(seconds) + count(DISTINCT person) FILTER (WHERE is_second) AS n_second,
    least(nullif(n_first, 0), CASE WHEN n_second > 0 THEN n_second + sum(others) END) AS size
"""
"""The size of a cell: the smaller one of its two groups, if both have people."""

_PREPARE: Final = """
    CREATE OR REPLACE TEMP TABLE classes AS
    SELECT row_number() OVER () AS class, part, vector
    FROM (
        SELECT DISTINCT part, vector
        FROM members
    );
    CREATE OR REPLACE TEMP TABLE shown_values AS
    SELECT class, part, unnest(range(len(vector))) AS slice, unnest(vector) AS value FROM classes;
    CREATE OR REPLACE TEMP TABLE class_people AS
    WITH people AS (
        SELECT
            c.part, c.class, m.person, bool_or(m.is_first) AS is_first, bool_or(m.is_second) AS is_second
        FROM members AS m
        JOIN classes AS c ON c.part = m.part AND c.vector = m.vector
        WHERE m.person IS NOT NULL
        GROUP BY ALL
    ),
    counted AS (
        SELECT *, count(*) OVER (PARTITION BY part, person) AS classes FROM people
    )
    -- Few people are in several classes of a part: only they must be counted anew in every round.
    SELECT
        class,
        NULL::UBIGINT AS person,
        NULL::BOOLEAN AS is_first,
        NULL::BOOLEAN AS is_second,
        count(*) FILTER (WHERE is_first) AS firsts,
        count(*) FILTER (WHERE is_second) AS seconds,
        0::BIGINT AS others
    FROM counted
    WHERE classes = 1
    GROUP BY class
    UNION ALL
    SELECT class, person, is_first, is_second, 0, 0, 0
    FROM counted
    WHERE classes > 1
    UNION ALL
    SELECT c.class, NULL, NULL, NULL, 0, 0, m.others
    FROM members AS m
    JOIN classes AS c ON c.part = m.part AND c.vector = m.vector
    WHERE m.person IS NULL
"""

_HIDE_CELLS: Final = f"""
    UPDATE shown_values AS v SET value = '{SUPPRESSED}'
    FROM (
        WITH cells AS (
            SELECT part, slice, value, {_SIZE}
            FROM shown_values JOIN class_people USING (class)
            GROUP BY ALL
        )
        SELECT
            *,
            max(size < $1) FILTER (WHERE value = '{SUPPRESSED}')
                OVER (PARTITION BY part, slice) AS needs_more,
            row_number() OVER (PARTITION BY part, slice ORDER BY value = '{SUPPRESSED}', size, value) AS place
        FROM cells
        QUALIFY value <> '{SUPPRESSED}' AND (size < $1 OR (needs_more AND place = 1))
    ) AS h
    WHERE h.part = v.part AND h.slice = v.slice AND h.value = v.value
"""

_HIDE_CLASSES: Final = f"""
    UPDATE shown_values AS v SET value = '{SUPPRESSED}'
    FROM (
        WITH shown AS (
            SELECT
                class,
                part,
                list(value ORDER BY slice) AS vector,
                bool_or(value = '{SUPPRESSED}') AS hides,
                bool_and(value = '{SUPPRESSED}') AS hides_all
            FROM shown_values
            GROUP BY class, part
        ),
        sizes AS (
            SELECT part, vector, any_value(hides) AS hides, any_value(hides_all) AS hides_all, {_SIZE}
            FROM shown JOIN class_people USING (class)
            GROUP BY part, vector
        ),
        chosen AS (
            SELECT
                *,
                max(size < $1) FILTER (WHERE hides_all) OVER (PARTITION BY part) AS needs_more,
                row_number() OVER (PARTITION BY part ORDER BY hides_all, size, vector) AS place
            FROM sizes
            QUALIFY NOT hides_all AND ((hides AND size < $1) OR (needs_more AND place = 1))
        )
        SELECT class FROM shown JOIN chosen USING (part, vector)
    ) AS h
    WHERE h.class = v.class AND v.value <> '{SUPPRESSED}'
"""

_SHOWN: Final = """
    CREATE OR REPLACE TEMP TABLE shown_vectors AS
    SELECT c.part, c.vector, list(v.value ORDER BY v.slice) AS shown
    FROM classes AS c JOIN shown_values AS v USING (class)
    GROUP BY c.part, c.vector
"""

_MEMBERS: Final = f"""
    SELECT
        s.date AS part,
        s.vector,
        -- Not of text: a cast of a UHUGEINT to text is slow.
        if(p.person IS NULL, hash(s.submission_id), hash(p.person)) AS person,
        s.verified IS NOT NULL AS is_first,
        TRUE AS is_second,
        0 AS others
    FROM (SELECT *, {_VECTOR} AS vector FROM {EXACT}.submissions) AS s
    JOIN lake.submissions AS p ON p.date = s.date AND p.submission_id = s.submission_id
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
    JOIN shown_vectors AS v ON v.part = s.date AND v.vector = s.vector
    ORDER BY s.date, s.submission_id
"""


def publish_submissions(connection: duckdb.DuckDBPyConnection, min_cell: int) -> None:
    """Creates `submissions` from `exact.submissions`, with the small cells of each day hidden.

    Reads `person` of `lake.submissions`; a submission without one counts as a person of its own.
    """
    hide(connection, _MEMBERS, min_cell)
    connection.execute(_COPY)
    connection.execute("DROP TABLE shown_vectors")


def hide(connection: duckdb.DuckDBPyConnection, members: str, min_cell: int) -> None:
    """Creates the temporary table `shown_vectors`: what each `vector` of values shows in each `part`.

    `members` is a query with a row per person, part and vector. A person belongs to the first group, to the
    second one, or to both; a cell needs `min_cell` people of each group that has any in it. A row without a
    person has the number of `others`, who count to the second group, but do not make one.
    """
    connection.execute(f"CREATE OR REPLACE TEMP VIEW members AS {members}")
    connection.execute(_PREPARE)
    while sum(_updated(connection, step, min_cell) for step in (_HIDE_CELLS, _HIDE_CLASSES)):
        pass
    connection.execute(_SHOWN)
    connection.execute("DROP VIEW members")
    for table in ("classes", "shown_values", "class_people"):
        connection.execute(f"DROP TABLE {table}")


def _updated(connection: duckdb.DuckDBPyConnection, sql: str, min_cell: int) -> int:
    return int(connection.execute(sql, [min_cell]).fetchall()[0][0])
