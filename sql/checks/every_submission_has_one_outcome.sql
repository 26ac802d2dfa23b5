-- Every accepted submission has exactly one of the documented outcomes. If not: run `verification_responses`
-- of that day again (it makes no call that is already paid).
--
-- severity: error
-- counts: submissions
SELECT date, submission_id, outcome
FROM submissions
WHERE
    outcome IS NULL
    OR outcome NOT IN ({outcomes})
