-- Every status of a check in the last {recent_days} days is known.
--
-- severity: warning
-- counts: sum of checks
-- todo: read contract_drift; DeepXL changed its responses
SELECT check_type, status, count(*) AS checks
FROM model_checks
WHERE normalized_status = 'UNKNOWN' AND is_recent(date, (SELECT max(date) FROM verifications))
GROUP BY check_type, status
