-- Days whose confidences drifted beyond noise. None, where no day has 200 checks of a type: drift is not told from
-- noise with fewer.
SELECT date, check_type, checks, psi, psi_noise_floor, ks, level
FROM confidence_drift
WHERE level IN ('moderate', 'large') AND psi > 2 * psi_noise_floor
ORDER BY psi DESC;
