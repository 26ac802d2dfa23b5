-- On every flattened day, each completed submission has a verification, and each verification has a completed
-- submission.
--
-- severity: error
-- counts: rows
-- todo: launch flatten_and_publish for these days, or run `kyc-pipeline backfill --force`
SELECT
    coalesce(s.date, v.date) AS date,
    coalesce(s.submission_id, v.submission_id) AS submission_id,
    v.verification_id
FROM (
    SELECT s.date, s.submission_id
    FROM submissions AS s
    SEMI JOIN build_partitions AS p ON p.date = s.date AND p.table_name = 'verifications'
    WHERE s.outcome = 'completed'
) AS s
FULL JOIN verifications AS v ON v.date = s.date AND v.submission_id = s.submission_id
WHERE s.submission_id IS NULL OR v.submission_id IS NULL
