-- No answer is quarantined for lacking the contract's hard requirements.
--
-- severity: warning
-- counts: submissions
SELECT date, submission_id
FROM submissions
WHERE outcome = 'quarantined'
