-- Every status of the last 28 days is one that the pipeline knows.
--
-- severity: warning
-- counts: sum of checks
SELECT check_type, status, count(*) AS checks
FROM model_checks
WHERE normalized_status = 'UNKNOWN' AND date > (SELECT max(date) - 28 FROM verifications)
GROUP BY check_type, status
