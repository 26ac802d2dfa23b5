-- No submission is held for a decision.
--
-- severity: warning
-- counts: submissions
-- todo: decide about them (`kyc-pipeline held list`)
SELECT date, submission_id
FROM submissions
WHERE outcome = 'uncertain'
