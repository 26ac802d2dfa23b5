-- Days whose confidences drifted beyond noise. No rows where no day has 200 checks of a type, and 200 in the 28 days
-- before.
SELECT date, check_type, checks, psi, psi_noise_floor, ks, level
FROM confidence_drift
WHERE level IN ('moderate', 'large') AND psi > 2 * psi_noise_floor
ORDER BY psi DESC;
