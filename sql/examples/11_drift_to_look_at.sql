-- Days whose confidences drifted beyond noise. Empty if no type has enough checks on a day and in its
-- baseline: the level is then `insufficient`.
SELECT date, check_type, checks, psi, psi_noise_floor, ks, level
FROM confidence_drift
WHERE level IN ('moderate', 'large') AND psi > 2 * psi_noise_floor
ORDER BY psi DESC;
