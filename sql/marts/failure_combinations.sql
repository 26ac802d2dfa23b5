-- Which checks fail together: verifications by day and set of failed check types.
--
-- date: Day of the manifest, the daily partition.
-- failed_checks: Distinct failed check types in alphabetical order, joined with +; `none` if no check failed.
-- verifications: Verifications with exactly this set of failed checks.
-- verified: Those that were verified.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH failures AS (
    SELECT
        date,
        verification_id,
        array_to_string(list_sort(list(DISTINCT check_type)), '+') AS failed_checks
    FROM model_checks
    WHERE normalized_status = 'FAIL'
    GROUP BY date, verification_id
)
SELECT
    v.date,
    coalesce(f.failed_checks, 'none') AS failed_checks,
    count(*) AS verifications,
    count(*) FILTER (WHERE v.verified) AS verified,
    any_value(v.is_complete) AS is_complete
FROM verifications AS v
LEFT JOIN failures AS f ON f.date = v.date AND f.verification_id = v.verification_id
GROUP BY v.date, f.failed_checks
ORDER BY v.date, failed_checks
