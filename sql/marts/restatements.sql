-- Figures of past days that a later build changed, because a response came late, rows were added or a person
-- was erased. New days and new figures are not in it.
--
-- date: Day of the manifest, the daily partition.
-- table_name: Table that has the figure.
-- metric: Column of that table.
-- check_group: Key under `modelResults`; NULL if the figure is not of a check.
-- check_type: Type of the check; NULL if the figure is not of a check.
-- was: The old figure.
-- is: The new figure; NULL if it no longer exists.
-- first_seen_build: Run whose build first had the old figure.
-- changed_by: Run whose build changed it.
-- changed_at: When that build began (UTC).
-- was_complete: Whether the day was complete when it had the old figure; if not, a change was to be expected.
-- is_complete: Whether no submission of the day is undecided now; see days.
WITH changes AS (
    SELECT
        date,
        table_name,
        metric,
        check_group,
        check_type,
        was,
        "is",
        first_seen_build,
        changed_by,
        changed_at,
        was_complete
    FROM previous.restatements
    UNION ALL
    SELECT
        p.date,
        p.table_name,
        p.metric,
        p.check_group,
        p.check_type,
        p.value AS was,
        f.value AS "is",
        p.first_seen_build,
        getvariable('run_id'),
        getvariable('built_at'),
        p.is_complete
    FROM previous.daily_figures AS p
    LEFT JOIN daily_figures AS f
        ON
            f.date = p.date
            AND f.table_name = p.table_name
            AND f.metric = p.metric
            AND f.check_group IS NOT DISTINCT FROM p.check_group
            AND f.check_type IS NOT DISTINCT FROM p.check_type
    WHERE p.value IS NOT NULL AND f.value IS DISTINCT FROM p.value
)
SELECT
    c.date,
    c.table_name,
    c.metric,
    c.check_group,
    c.check_type,
    c.was,
    c."is",
    c.first_seen_build,
    c.changed_by,
    c.changed_at,
    c.was_complete,
    coalesce(d.is_complete, FALSE) AS is_complete
FROM changes AS c
LEFT JOIN days AS d ON d.date = c.date
ORDER BY c.date, c.table_name, c.metric, c.check_group, c.check_type, c.changed_at
