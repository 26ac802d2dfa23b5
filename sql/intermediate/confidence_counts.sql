-- How many checks have each confidence, by check type and day. Not published.
--
-- date: Day of the manifest, the daily partition.
-- check_group: Key under `modelResults`, such as `technicalChecks`.
-- check_type: Which check; UNKNOWN where the answer names none.
-- confidence: A confidence in [0, 1].
-- checks: Checks that have it.
SELECT date, check_group, check_type, confidence, count(*) AS checks
FROM model_checks
WHERE confidence IS NOT NULL
GROUP BY date, check_group, check_type, confidence
