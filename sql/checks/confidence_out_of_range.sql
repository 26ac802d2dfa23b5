-- Every confidence received in the last {recent_days} days is a number from 0 to 1.
--
-- severity: warning
-- counts: sum of checks
-- todo: ask DeepXL; such confidences are NULL in the figures
SELECT check_type, count(*) AS checks
FROM model_checks
WHERE
    confidence IS NULL
    AND confidence_raw <> 'null'
    AND is_recent(date, (SELECT max(date) FROM verifications))
GROUP BY check_type
