-- Every verified day has as many responses as submissions.
--
-- severity: error
-- counts: days
-- todo: materialize verification_responses of these days, or run `kyc-pipeline backfill`; it
--   repeats no paid call
SELECT r.date, coalesce(s.rows, 0) AS submissions, r.rows AS responses
FROM build_partitions AS r
LEFT JOIN build_partitions AS s ON s.date = r.date AND s.table_name = 'submissions'
WHERE r.table_name = 'verification_responses' AND r.rows <> coalesce(s.rows, 0)
