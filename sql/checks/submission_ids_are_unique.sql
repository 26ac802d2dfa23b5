-- No submission id occurs twice over all days.
--
-- severity: error
-- counts: repeated ids
-- todo: materialize submissions of the later day, or run that day with `kyc-pipeline backfill`
SELECT submission_id, count(*) AS occurrences
FROM submissions
GROUP BY submission_id
HAVING count(*) > 1
