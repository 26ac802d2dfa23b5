-- No submission is held as uncertain: see `kyc-pipeline held list`.
--
-- severity: warning
-- counts: submissions
SELECT date, submission_id
FROM submissions
WHERE outcome = 'uncertain'
