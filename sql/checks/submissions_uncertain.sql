-- No submission is held as uncertain: see `kyc-pipeline held list`.
--
-- severity: warning
-- unit: submissions
SELECT date, submission_id FROM submissions WHERE outcome = 'uncertain'
