-- Confidences of passed and failed checks side by side, in bins of 0.1.
SELECT
    check_type,
    floor(bin / 10) / 10 AS from_confidence,
    sum(checks) FILTER (WHERE normalized_status = 'PASS') AS passed,
    sum(checks) FILTER (WHERE normalized_status = 'FAIL') AS failed
FROM confidence_histogram
GROUP BY ALL
HAVING sum(checks) > 0
ORDER BY check_type, from_confidence;
