-- Every day with submissions is verified. If not, materialize `verification_responses` of that day.
--
-- severity: warning
-- counts: days
SELECT s.date, s.rows AS submissions
FROM build_partitions AS s
ANTI JOIN build_partitions AS r ON r.date = s.date AND r.table_name = 'verification_responses'
WHERE s.table_name = 'submissions' AND s.rows > 0
