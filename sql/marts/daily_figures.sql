-- The main figures of each day in long form, with the build that first had them. The next build compares its
-- own figures with these: see restatements.
--
-- date: Day of the manifest, the daily partition.
-- table_name: Table that has the figure.
-- metric: Column of that table.
-- check_group: Key under `modelResults`; NULL if the figure is not of a check.
-- check_type: Type of the check; NULL if the figure is not of a check.
-- value: The figure; NULL if it does not exist, such as a rate without decided checks.
-- first_seen_build: Run whose build first had this value.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH figures AS (
    SELECT
        date,
        'submission_funnel' AS table_name,
        unnest(['received', 'rejected', 'completed', 'verified']) AS metric,
        NULL AS check_group,
        NULL AS check_type,
        unnest([received, rejected, completed, verified])::DOUBLE AS value
    FROM submission_funnel
    UNION ALL
    SELECT date, 'api_performance', 'billable_calls', NULL, NULL, billable_calls FROM api_performance
    UNION ALL
    SELECT date, 'verified_rates', 'verified_rate', NULL, NULL, verified_rate FROM verified_rates
    UNION ALL
    SELECT date, 'pass_rates', 'pass_rate', check_group, check_type, pass_rate FROM pass_rates
)
SELECT
    f.date,
    f.table_name,
    f.metric,
    f.check_group,
    f.check_type,
    f.value,
    coalesce(p.first_seen_build, getvariable('run_id')) AS first_seen_build,
    d.is_complete
FROM figures AS f
JOIN days AS d ON d.date = f.date
LEFT JOIN previous.daily_figures AS p
    ON
        p.date = f.date
        AND p.table_name = f.table_name
        AND p.metric = f.metric
        AND p.check_group IS NOT DISTINCT FROM f.check_group
        AND p.check_type IS NOT DISTINCT FROM f.check_type
        AND p.value IS NOT DISTINCT FROM f.value
ORDER BY f.date, f.table_name, f.metric, f.check_group, f.check_type
