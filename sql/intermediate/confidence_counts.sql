-- Number of checks by day, check type and confidence. Not published.
--
-- date: Day of the manifest, the daily partition.
-- check_group: Key under `modelResults`: `technicalChecks`, or OTHER (see model_checks).
-- check_type: Type of the check; OTHER if it is unknown, UNKNOWN if the response has none.
-- confidence: A confidence in [0, 1].
-- checks: Checks with this confidence.
SELECT date, check_group, check_type, confidence, count(*) AS checks
FROM model_checks
WHERE confidence IS NOT NULL
GROUP BY date, check_group, check_type, confidence
