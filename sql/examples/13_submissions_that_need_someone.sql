-- Submissions that need a decision or another run, oldest first.
SELECT date, outcome, count(*) AS submissions, min(submission_id) AS example
FROM submissions
WHERE outcome IN ('uncertain', 'quarantined', 'failed', 'not_attempted')
GROUP BY date, outcome
ORDER BY date, outcome;
