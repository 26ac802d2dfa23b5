-- No answer is quarantined for breaking the hard requirements of the contract.
--
-- severity: warning
-- counts: submissions
SELECT date, submission_id
FROM submissions
WHERE outcome = 'quarantined'
