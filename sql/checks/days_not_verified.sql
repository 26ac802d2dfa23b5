-- Every day with submissions is verified.
--
-- severity: warning
-- counts: days
-- todo: run these days with `kyc-pipeline backfill`
SELECT s.date, s.rows AS submissions
FROM build_partitions AS s
ANTI JOIN build_partitions AS r ON r.date = s.date AND r.table_name = 'verification_responses'
WHERE s.table_name = 'submissions' AND s.rows > 0
