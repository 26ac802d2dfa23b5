-- Weekly counts of every rate that alarms watch: each check type, the decision, and the decision by company
-- and dimension. Only complete days of weeks that have ended count. Not published.
--
-- board: `rates`, or `slices` for those by company or dimension: each board has false alarms of its own.
-- series: Number of the series within its board.
-- check_group: Key under `modelResults`; `verdict` for the decision.
-- check_type: Type of the check; VERIFIED for the decision.
-- dimension: `company` or a tag of `KYC_DIMENSIONS`; NULL for the rate of all submissions.
-- value: Its value; NULL for the rate of all submissions.
-- week: Monday of the week.
-- passed: Checks that passed, or submissions that were verified.
-- decided: Checks that passed or failed, or verifications.
-- excess: Chi-squared of the days' rates against the week's.
-- freedom: Its degrees of freedom.
WITH daily AS (
    SELECT
        'rates' AS board,
        check_group,
        check_type,
        NULL AS dimension,
        NULL AS value,
        date,
        passed,
        passed + failed AS decided
    FROM pass_rates
    UNION ALL
    SELECT 'rates', 'verdict', 'VERIFIED', NULL, NULL, date, verified, verifications
    FROM verified_rates
    UNION ALL
    SELECT 'slices', 'verdict', 'VERIFIED', 'company', company_id, date, verified, verifications
    FROM verified_rates_by_company
    -- As a dimension, the same tag has series already.
    WHERE '{company_tag}' NOT IN (SELECT dimension FROM verified_rates_by_dimension)
    UNION ALL
    SELECT 'slices', 'verdict', 'VERIFIED', dimension, value, date, verified, verifications
    FROM verified_rates_by_dimension
    WHERE dimension <> 'model_version'
),
ended AS (
    SELECT date, date_trunc('week', date)::DATE AS week
    FROM days
    WHERE is_complete AND date_trunc('week', date)::DATE + 6 <= (SELECT max(date) FROM days)
),
numbered AS (
    SELECT
        d.board,
        dense_rank() OVER (
            PARTITION BY d.board ORDER BY d.check_group, d.check_type, d.dimension, d.value
        ) AS series,
        d.check_group,
        d.check_type,
        d.dimension,
        d.value,
        e.week,
        d.passed,
        d.decided
    FROM daily AS d
    JOIN ended AS e ON e.date = d.date
    WHERE d.decided > 0 AND coalesce(d.value, '') <> '{suppressed}'
),
rated AS (
    SELECT
        *,
        sum(passed) OVER (PARTITION BY board, series, week)
        / sum(decided) OVER (PARTITION BY board, series, week) AS rate
    FROM numbered
)
SELECT
    board,
    series,
    check_group,
    check_type,
    dimension,
    value,
    week,
    sum(passed)::BIGINT AS passed,
    sum(decided)::BIGINT AS decided,
    coalesce(sum((passed - decided * rate) ** 2 / nullif(decided * rate * (1 - rate), 0)), 0) AS excess,
    greatest(count(*) FILTER (WHERE rate > 0 AND rate < 1) - 1, 0) AS freedom
FROM rated
GROUP BY board, series, check_group, check_type, dimension, value, week
HAVING count(*) >= {alarm_min_days}
