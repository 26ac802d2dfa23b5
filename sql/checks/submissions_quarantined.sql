-- No answer is quarantined for lacking the contract's hard requirements.
--
-- severity: warning
-- unit: submissions
SELECT date, submission_id FROM submissions WHERE outcome = 'quarantined'
