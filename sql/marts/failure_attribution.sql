-- Why verifications were declined (not verified): for each check type, in how many of them it failed, and in
-- how many it was the only failed check. Each day with a verdict also has two rows with group `verdict`:
-- UNEXPLAINED_DECLINE (declined without a failed check; one may be in review or not evaluated) and OVERRIDE
-- (verified despite a failed check).
--
-- date: Day of the manifest, the daily partition.
-- check_group: Key under `modelResults`: `technicalChecks`, or OTHER (see model_checks); `verdict` for the
--   two special rows.
-- check_type: Type of the check; OTHER if it is unknown, UNKNOWN if the response has none;
--   UNEXPLAINED_DECLINE or OVERRIDE.
-- failing: Declined verifications in which this check failed; in the special rows, such declines or
--   overrides. A verification with two failed checks counts for both.
-- sole_blocker: Those in which no other check failed; 0 in the special rows.
-- not_verified: All declined verifications of the day.
-- failing_verified: Verifications that were verified despite a failure of this check.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH failures AS (
    SELECT DISTINCT date, verification_id, check_group, check_type
    FROM model_checks
    WHERE normalized_status = 'FAIL'
),
failed AS (
    SELECT date, verification_id, count(*) AS failed_checks
    FROM failures
    GROUP BY date, verification_id
),
verdicts AS (
    SELECT v.date, v.verification_id, v.verified, coalesce(f.failed_checks, 0) AS failed_checks
    FROM verifications AS v
    LEFT JOIN failed AS f ON f.date = v.date AND f.verification_id = v.verification_id
),
by_day AS (
    SELECT
        date,
        count(*) FILTER (WHERE NOT verified) AS not_verified,
        count(*) FILTER (WHERE NOT verified AND failed_checks = 0) AS unexplained,
        count(*) FILTER (WHERE verified AND failed_checks > 0) AS overrides
    FROM verdicts
    GROUP BY date
),
types AS (
    SELECT DISTINCT date, check_group, check_type FROM model_checks
),
attributed AS (
    SELECT
        f.date,
        f.check_group,
        f.check_type,
        count(*) FILTER (WHERE NOT v.verified) AS failing,
        count(*) FILTER (WHERE NOT v.verified AND v.failed_checks = 1) AS sole_blocker,
        count(*) FILTER (WHERE v.verified) AS failing_verified
    FROM failures AS f
    JOIN verdicts AS v ON v.date = f.date AND v.verification_id = f.verification_id
    GROUP BY f.date, f.check_group, f.check_type
),
attributions AS (
    SELECT
        t.date,
        t.check_group,
        t.check_type,
        coalesce(a.failing, 0) AS failing,
        coalesce(a.sole_blocker, 0) AS sole_blocker,
        d.not_verified,
        coalesce(a.failing_verified, 0) AS failing_verified
    FROM types AS t
    JOIN by_day AS d ON d.date = t.date
    LEFT JOIN attributed AS a
        ON a.date = t.date AND a.check_group = t.check_group AND a.check_type = t.check_type
    UNION ALL
    SELECT date, 'verdict', 'UNEXPLAINED_DECLINE', unexplained, 0, not_verified, 0 FROM by_day
    UNION ALL
    SELECT date, 'verdict', 'OVERRIDE', overrides AS failing, 0, not_verified, overrides AS failing_verified
    FROM by_day
)
SELECT date, check_group, check_type, failing, sole_blocker, not_verified, failing_verified, is_complete
FROM attributions
JOIN days USING (date)
ORDER BY date, check_group, check_type
