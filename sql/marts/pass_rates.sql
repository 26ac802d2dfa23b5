-- Pass rate of each check type and day, with its 95 % Wilson interval. Decided checks only: REVIEW,
-- NOT_EVALUATED, ERROR, PENDING and UNKNOWN are counted in `other` and are outside the rate.
--
-- date: Day of the manifest, the daily partition.
-- check_group: Key under `modelResults`, such as `technicalChecks`.
-- check_type: Which check; UNKNOWN where the answer names none.
-- checks: All checks of this type.
-- passed: Checks with normalized status PASS.
-- failed: Checks with normalized status FAIL.
-- other: Checks that are neither: checks - passed - failed.
-- pass_rate: passed / (passed + failed); NULL where nothing was decided.
-- pass_rate_low: Lower bound of the 95 % Wilson interval (z = {z_95}).
-- pass_rate_high: Upper bound of the same interval.
-- low_n: Fewer than {low_n} decided checks: do not decide by this row alone.
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
    is_low_n(passed + failed) AS low_n
FROM counts
ORDER BY date, check_group, check_type
