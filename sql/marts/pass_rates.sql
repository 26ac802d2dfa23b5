-- Pass rate of each check type and day, with its 95% Wilson interval. The rate is of decided checks only:
-- `other` counts REVIEW, NOT_EVALUATED, ERROR, PENDING and UNKNOWN. On a day with undecided submissions each
-- check type has a row, even without a check, so that the bounds of a period can be computed from the sums.
--
-- date: Day of the manifest, the daily partition.
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
-- undecided: Submissions of the day that may still get a verdict; see days.
-- rate_worst: The rate if none of them passes this check; on a complete day, the rate itself.
-- rate_best: The rate if all of them pass it.
-- is_complete: Whether none is undecided.
WITH counts AS (
    SELECT
        date,
        check_group,
        check_type,
        count(*) AS checks,
        count(*) FILTER (WHERE normalized_status = 'PASS') AS passed,
        count(*) FILTER (WHERE normalized_status = 'FAIL') AS failed
    FROM model_checks
    GROUP BY date, check_group, check_type
),
types AS (
    SELECT DISTINCT check_group, check_type FROM counts
),
all_days AS (
    SELECT
        date,
        check_group,
        check_type,
        coalesce(c.checks, 0) AS checks,
        coalesce(c.passed, 0) AS passed,
        coalesce(c.failed, 0) AS failed,
        undecided,
        is_complete
    FROM days
    CROSS JOIN types
    LEFT JOIN counts AS c USING (date, check_group, check_type)
)
SELECT
    date,
    check_group,
    check_type,
    checks,
    passed,
    failed,
    checks - passed - failed AS other,
    ratio(passed, passed + failed) AS pass_rate,
    wilson_low(passed, passed + failed) AS pass_rate_low,
    wilson_high(passed, passed + failed) AS pass_rate_high,
    is_low_n(passed + failed) AS low_n,
    undecided,
    rate_worst(passed, passed + failed, undecided) AS rate_worst,
    rate_best(passed, passed + failed, undecided) AS rate_best,
    is_complete
FROM all_days
WHERE checks > 0 OR undecided > 0
ORDER BY date, check_group, check_type
