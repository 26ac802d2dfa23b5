-- No submission is uncertain: held for a decision, or waiting for the run that applies it.
--
-- severity: warning
-- counts: submissions
-- todo: decide about them (`kyc-pipeline held list`)
SELECT date, submission_id
FROM submissions
WHERE outcome = 'uncertain'
