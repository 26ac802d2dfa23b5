-- Everything about one submission: its outcome and each of its checks. Replace the subquery with the id of
-- your submission.
SELECT s.date, s.submission_id, s.outcome, v.verified, c.check_type, c.normalized_status, c.confidence
FROM submissions AS s
LEFT JOIN verifications AS v USING (date, submission_id)
LEFT JOIN model_checks AS c USING (date, verification_id)
WHERE s.submission_id = (SELECT min(submission_id) FROM submissions)
ORDER BY c.check_group, c.check_index;
