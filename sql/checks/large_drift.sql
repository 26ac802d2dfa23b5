-- No day of the last {recent_days} days has large drift of the confidences from those of the {baseline_days}
-- days before it.
--
-- severity: warning
-- counts: days and check types
SELECT date, check_type, psi, ks
FROM confidence_drift
WHERE level = 'large' AND is_recent(date, (SELECT max(date) FROM verifications))
