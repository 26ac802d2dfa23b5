-- The highest threshold at which at least 95% of the scored checks would still pass.
SELECT check_type, max(threshold) AS threshold, min(rate) AS rate, bool_and(orientation_verified) AS trusted
FROM threshold_sensitivity
WHERE rate >= 0.95
GROUP BY check_type
ORDER BY check_type;
