-- Submissions that a person should look at, with each reason to do so; the most urgent first. A submission
-- may have several reasons.
--
-- submission_id: Submission id, unique forever.
-- date: Day of the manifest, the daily partition.
-- reason: `uncertain`: held for a decision. `quarantined`: its response breaks the contract.
--   `verified_despite_failed_check` and `declined_without_failed_check`: verdict and checks disagree.
--   `shared_document`: several people presented its ID document. `check_in_review`: a check has the status
--   REVIEW.
-- priority: 1 (decide: there is no verdict), 2 (the verdict may be wrong) or 3 (look).
-- is_complete: Whether no submission of the day is undecided; see days.
WITH shared AS (
    SELECT v.id_document_pseudonym
    FROM verifications AS v
    JOIN submission_subjects AS p ON p.date = v.date AND p.submission_id = v.submission_id
    WHERE v.id_document_pseudonym IS NOT NULL
    GROUP BY v.id_document_pseudonym
    HAVING count(DISTINCT p.subject) > 1
),
checks AS (
    SELECT
        date,
        submission_id,
        bool_or(normalized_status = 'FAIL') AS has_failed,
        bool_or(normalized_status = 'REVIEW') AS is_in_review
    FROM model_checks
    GROUP BY date, submission_id
),
reasons AS (
    SELECT date, submission_id, outcome AS reason, 1 AS priority
    FROM submissions
    WHERE outcome IN ('uncertain', 'quarantined')
    UNION ALL
    SELECT
        v.date,
        v.submission_id,
        CASE WHEN v.verified THEN 'verified_despite_failed_check' ELSE 'declined_without_failed_check' END,
        2
    FROM verifications AS v
    LEFT JOIN checks AS c ON c.date = v.date AND c.submission_id = v.submission_id
    WHERE v.verified = coalesce(c.has_failed, FALSE)
    UNION ALL
    SELECT v.date, v.submission_id, 'shared_document', 2
    FROM verifications AS v
    JOIN shared AS s ON s.id_document_pseudonym = v.id_document_pseudonym
    UNION ALL
    SELECT date, submission_id, 'check_in_review', 3
    FROM checks
    WHERE is_in_review
)
SELECT r.submission_id, r.date, r.reason, r.priority, d.is_complete
FROM reasons AS r
JOIN days AS d ON d.date = r.date
ORDER BY r.priority, r.date, r.submission_id, r.reason
