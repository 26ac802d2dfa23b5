"""Hides small cells of labelled people: values of dimensions with fewer than `KYC_MIN_CELL` of a kind.

A *cell* has the genuine people, the frauds or the presentation attacks with one value that a check has
accepted or rejected: the denominator of a rate in `error_rates_by_dimension`. Each check is a part by itself.
Its kinds are hidden one after the other, and what one hides, all later ones hide. So whatever is published of
several kinds together are sums over the same classes (see :mod:`small_cells`).

If almost everybody has a label, the published rates tell how many people have a value, and one kind is what
the others leave. So a cell also needs enough people of all later kinds together, if there are any. Those
without a label count to them, because nobody can tell them apart. Where all of a kind are too few, their
dimensions are not shown at all.
"""

from typing import Final

import duckdb

from kyc_pipeline.analyze.small_cells import hide
from kyc_pipeline.rules import SUPPRESSED

_KINDS: Final = (
    ("genuine", True),
    ("fraud", True),
    ("genuine", False),
    ("fraud", False),
    ("presentation", True),
    ("presentation", False),
)
"""Kind, and whether weighted, in the order of hiding: what is hidden first is hidden least."""
_DISJOINT: Final = 4
"""So many kinds share no people. A presentation attack is also a fraud."""

_ROWS: Final = """
    CREATE TEMP TABLE label_rows AS
    SELECT
        rowid AS place,
        {check_group: check_group, check_type: check_type} AS part,
        list_position($1, {kind: kind, weighted: weighted}) AS kind,
        -- Not of text: a cast of a UHUGEINT to text is slow.
        if(person IS NULL, hash(submission_id), hash(person)) AS person,
        map_values(dimensions) AS vector
    FROM labelled_slices
    WHERE accepted IS NOT NULL
"""
_VECTORS: Final = "CREATE TEMP TABLE label_vectors AS SELECT DISTINCT vector FROM label_rows"

# A submission may have several checks of a type, but only one at an index: the largest count is a lower
# bound.
_OTHERS: Final = """
    CREATE TEMP TABLE label_others AS
    WITH holders AS (
        SELECT s.date, s.submission_id, s.verified, v.rowid AS id
        FROM submissions AS s
        JOIN label_vectors AS v ON v.vector = map_values(s.dimensions)
    ),
    counts AS (
        SELECT c.check_group, c.check_type, h.id, c.check_index, count(*) AS n
        FROM model_checks AS c
        JOIN holders AS h ON h.date = c.date AND h.submission_id = c.submission_id
        WHERE c.normalized_status IN ('PASS', 'FAIL')
        GROUP BY ALL
        UNION ALL
        SELECT 'verdict', 'VERIFIED', id, 0, count(*)
        FROM holders
        WHERE verified IS NOT NULL
        GROUP BY id
    ),
    labelled AS (
        SELECT part, vector, count(*) AS n
        FROM label_rows
        WHERE kind <= $1
        GROUP BY ALL
    )
    SELECT l.part, l.vector, greatest(max(c.n) - any_value(l.n), 0) AS others
    FROM labelled AS l
    JOIN label_vectors AS v ON v.vector = l.vector
    JOIN counts AS c ON c.id = v.rowid AND {check_group: c.check_group, check_type: c.check_type} = l.part
    GROUP BY l.part, l.vector
"""


def hide_label_cells(connection: duckdb.DuckDBPyConnection, min_cell: int) -> None:
    """Hides the small cells in the `dimensions` of `labelled_slices`, which has those of `submissions`.

    A value that stands for too few people, because all of its kind are too few, becomes NULL.
    """
    if not connection.execute("SELECT 1 FROM labelled_slices LIMIT 1").fetchall():
        return
    kinds = [{"kind": kind, "weighted": weighted} for kind, weighted in _KINDS]
    connection.execute(_ROWS, [kinds])
    connection.execute(_VECTORS)
    connection.execute(_OTHERS, [_DISJOINT])
    for number in range(1, len(_KINDS) + 1):
        later = f"kind BETWEEN {number + 1} AND {_DISJOINT}"
        hide(
            connection,
            f"""
            SELECT part, vector, person, kind = {number} AS is_first, {later} AS is_second, 0 AS others
            FROM label_rows
            WHERE kind = {number} OR {later}
            UNION ALL
            SELECT part, vector, NULL, FALSE, FALSE, others
            FROM label_others
            SEMI JOIN (FROM label_rows WHERE kind >= {number}) USING (part, vector)
            """,
            min_cell,
        )
        for table, condition in (("label_rows", f"kind >= {number}"), ("label_others", "TRUE")):
            connection.execute(
                f"UPDATE {table} AS l SET vector = s.shown FROM shown_vectors AS s"
                f" WHERE s.part = l.part AND s.vector = l.vector AND {condition}"
            )
    connection.execute(
        f"""
        UPDATE labelled_slices AS t
        SET dimensions = map(
            map_keys(t.dimensions),
            list_transform(r.vector, lambda value, slice: CASE
                WHEN value = '{SUPPRESSED}' AND r.people[slice] < $1 THEN NULL ELSE value
            END)
        )
        FROM (
            SELECT l.place, l.vector, list(c.people ORDER BY c.slice) AS people
            FROM label_rows AS l
            JOIN (
                SELECT part, kind, slice, value, count(DISTINCT person) AS people
                FROM (
                    SELECT part, kind, person, unnest(range(len(vector))) AS slice, unnest(vector) AS value
                    FROM label_rows
                )
                GROUP BY ALL
            ) AS c ON c.part = l.part AND c.kind = l.kind AND c.value = l.vector[c.slice + 1]
            GROUP BY l.place, l.vector
        ) AS r
        WHERE t.rowid = r.place
        """,
        [min_cell],
    )
    for table in ("shown_vectors", "label_rows", "label_vectors", "label_others"):
        connection.execute(f"DROP TABLE {table}")
