-- Every accepted submission has exactly one of the documented outcomes.
--
-- severity: error
-- counts: submissions
-- todo: materialize verification_responses of these days, or run `kyc-pipeline backfill`; it
--   repeats no paid call
SELECT date, submission_id, outcome
FROM submissions
WHERE
    outcome IS NULL
    OR outcome NOT IN ({outcomes})
