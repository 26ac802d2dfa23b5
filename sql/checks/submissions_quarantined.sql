-- No submission is quarantined: every 2xx response meets the hard requirements of the contract.
--
-- severity: warning
-- counts: submissions
-- todo: read their responses in the lake, in restricted/verification_responses, and ask DeepXL
SELECT date, submission_id
FROM submissions
WHERE outcome = 'quarantined'
