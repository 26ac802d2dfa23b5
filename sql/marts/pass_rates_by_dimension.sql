-- Pass rate of each check type and day by value of each dimension, with its 95% Wilson interval: the tags
-- of `KYC_DIMENSIONS`, and the model version. Each dimension has every check once. Where a value has
-- undecided submissions, each check type has a row: see pass_rates.
--
-- date: Day of the manifest, the daily partition.
-- dimension: Name of the tag, or `model_version`.
-- value: Its value in the manifest, or in the response for `model_version`; UNKNOWN without one, {suppressed}
--   for all values with few people: see submissions.
-- check_group: Key under `modelResults`: `technicalChecks`, or OTHER (see model_checks).
-- check_type: Type of the check; OTHER if it is unknown, UNKNOWN if the response has none.
-- checks: All checks of this type.
-- passed: Checks with normalized status PASS.
-- failed: Checks with normalized status FAIL.
-- other: Checks that are neither: checks - passed - failed.
-- pass_rate: passed / (passed + failed); NULL if no check was decided.
-- pass_rate_low: Lower bound of the 95% Wilson interval (z = {z_95}).
-- pass_rate_high: Upper bound of the same interval.
-- low_n: Fewer than {low_n} decided checks: do not base decisions on this row alone.
-- undecided: Submissions with this value that may still get a verdict; all of the day for each
--   `model_version`.
-- rate_worst: The rate if none of them passes this check; without undecided ones, the rate itself.
-- rate_best: The rate if all of them pass it.
-- is_complete: Whether none is undecided.
WITH combinations AS (
    SELECT date, dimensions, count(*) OVER (PARTITION BY date) AS in_day
    FROM submission_counts
    WHERE verified IS NOT NULL
    GROUP BY date, dimensions
),
mixed AS (
    SELECT DISTINCT date
    FROM combinations
    WHERE in_day > 1
),
counts AS (
    -- The usual case without dimensions: one model version per day, so no join is needed.
    SELECT p.date, c.dimensions, p.check_group, p.check_type, p.checks, p.passed, p.failed
    FROM pass_rates AS p
    JOIN combinations AS c ON c.date = p.date AND c.in_day = 1
    WHERE p.checks > 0
    UNION ALL
    SELECT
        c.date,
        s.dimensions,
        c.check_group,
        c.check_type,
        count(*) AS checks,
        count(*) FILTER (WHERE c.normalized_status = 'PASS') AS passed,
        count(*) FILTER (WHERE c.normalized_status = 'FAIL') AS failed
    FROM model_checks AS c
    JOIN submissions AS s ON s.date = c.date AND s.submission_id = c.submission_id
    JOIN mixed AS m ON m.date = c.date
    GROUP BY c.date, s.dimensions, c.check_group, c.check_type
),
sliced AS (
    SELECT
        date,
        unnest(map_keys(dimensions)) AS dimension,
        unnest(map_values(dimensions)) AS value,
        check_group,
        check_type,
        checks,
        passed,
        failed
    FROM counts
    UNION ALL
    SELECT v.date, v.dimension, v.value, t.check_group, t.check_type, 0, 0, 0
    FROM verified_rates_by_dimension AS v
    CROSS JOIN (SELECT DISTINCT check_group, check_type FROM pass_rates) AS t
    WHERE v.undecided > 0
),
totals AS (
    SELECT
        date,
        dimension,
        value,
        check_group,
        check_type,
        sum(checks)::BIGINT AS checks,
        sum(passed)::BIGINT AS passed,
        sum(failed)::BIGINT AS failed
    FROM sliced
    GROUP BY date, dimension, value, check_group, check_type
)
SELECT
    t.date,
    t.dimension,
    t.value,
    t.check_group,
    t.check_type,
    t.checks,
    t.passed,
    t.failed,
    t.checks - t.passed - t.failed AS other,
    ratio(t.passed, t.passed + t.failed) AS pass_rate,
    wilson_low(t.passed, t.passed + t.failed) AS pass_rate_low,
    wilson_high(t.passed, t.passed + t.failed) AS pass_rate_high,
    is_low_n(t.passed + t.failed) AS low_n,
    v.undecided,
    rate_worst(t.passed, t.passed + t.failed, v.undecided) AS rate_worst,
    rate_best(t.passed, t.passed + t.failed, v.undecided) AS rate_best,
    v.is_complete
FROM totals AS t
JOIN verified_rates_by_dimension AS v ON v.date = t.date AND v.dimension = t.dimension AND v.value = t.value
ORDER BY t.date, t.dimension, t.value, t.check_group, t.check_type
