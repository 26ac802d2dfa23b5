-- Every verification has `check_count` rows in `model_checks`, and every check has its verification.
--
-- severity: error
-- counts: rows
-- todo: launch flatten_and_publish for these days, or run `kyc-pipeline backfill --force`
SELECT
    coalesce(v.date, c.date) AS date,
    coalesce(v.verification_id, c.verification_id) AS verification_id,
    v.check_count,
    coalesce(c.checks, 0) AS checks
FROM verifications AS v
FULL JOIN (
    SELECT date, submission_id, verification_id, count(*) AS checks
    FROM model_checks
    GROUP BY date, submission_id, verification_id
) AS c ON c.date = v.date AND c.submission_id = v.submission_id AND c.verification_id = v.verification_id
WHERE v.check_count IS DISTINCT FROM coalesce(c.checks, 0)
