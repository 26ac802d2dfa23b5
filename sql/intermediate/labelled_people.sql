-- The people whose submissions have labels. Not published.
--
-- submission_id: Submission id, unique forever.
-- person: The person; there is no row if no response names one.
SELECT p.submission_id, p.subject AS person
FROM submission_subjects AS p
JOIN submission_labels AS l ON l.date = p.date AND l.submission_id = p.submission_id
