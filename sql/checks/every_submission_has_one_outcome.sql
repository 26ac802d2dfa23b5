-- Every accepted submission has exactly one of the documented outcomes. If not, materialize
-- `verification_responses` of that day again (it repeats no paid call).
--
-- severity: error
-- counts: submissions
SELECT date, submission_id, outcome
FROM submissions
WHERE
    outcome IS NULL
    OR outcome NOT IN ({outcomes})
