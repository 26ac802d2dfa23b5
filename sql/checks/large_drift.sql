-- On none of the last 28 days have confidences drifted far from those of the 28 days before.
--
-- severity: warning
-- counts: days and check types
SELECT date, check_type, psi, ks
FROM confidence_drift
WHERE level = 'large' AND date > (SELECT max(date) - 28 FROM verifications)
