-- Complete days whose confidences drifted beyond noise. Windows of several days overlap, so neighbouring days
-- may show the same drift. Empty if no type has enough checks: the level is then `insufficient`.
SELECT date, check_group, check_type, window_days, checks, psi, psi_noise_floor, ks, level
FROM confidence_drift
WHERE level IN ('moderate', 'large') AND is_complete
ORDER BY psi DESC;
