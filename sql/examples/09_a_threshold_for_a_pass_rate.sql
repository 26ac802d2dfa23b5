-- The highest threshold at which at least 95% of the scored checks would still pass. Use only `trusted` ones:
-- for the others, confidences do not separate passed from failed checks better than chance.
SELECT
    check_group,
    check_type,
    max(threshold) AS threshold,
    arg_max(rate, threshold) AS rate,
    arg_max(flips_to_fail, threshold) AS flips_to_fail,
    bool_and(orientation_verified) AS trusted
FROM threshold_sensitivity
WHERE rate >= 0.95
GROUP BY check_group, check_type
ORDER BY check_group, check_type;
