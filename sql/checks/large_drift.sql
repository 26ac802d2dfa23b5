-- On none of the last {recent_days} days did the confidences of a check type drift far (level `large`) from
-- those of the {baseline_days} days before it.
--
-- severity: warning
-- counts: days and check types
-- todo: read confidence_drift, and find out whether the model changed
SELECT date, check_type, psi, ks
FROM confidence_drift
WHERE level = 'large' AND is_recent(date, (SELECT max(date) FROM verifications))
