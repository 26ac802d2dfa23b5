-- People who return, by cohort: the day on which they were first seen. A subject is a pseudonym of the tags
-- in `KYC_SUBJECT_TAGS`, by default company and customer; without the last of these tags a submission has
-- no subject. Its submissions are its completed verifications in the order of day, submitted_at and
-- verification id. Compare only mature cohorts: recent ones have had less time to return.
--
-- date: Day on which these subjects were first seen.
-- subjects: Subjects first seen on that day.
-- repeat_subjects: Those with two or more submissions, up to the last day of the data.
-- first_attempt_passed: Those whose first submission was verified.
-- passed_within_3: Those with a verified submission among their first three, up to the last day.
-- shared_documents: ID documents (by content) that a second subject presented for the first time on this
--   day.
-- passed_within_7_days: Those with a verified submission among their first three, within 7 days of the
--   first.
-- mature: Whether the data extend 7 days beyond the cohort's day, so that passed_within_7_days is final.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH attempts AS (
    SELECT
        t.subject,
        v.date,
        v.verified,
        v.id_document_pseudonym,
        row_number() OVER (
            PARTITION BY t.subject ORDER BY v.date, s.submitted_at NULLS LAST, v.verification_id
        ) AS attempt,
        min(v.date) OVER (PARTITION BY t.subject) AS first_date
    FROM verifications AS v
    JOIN submission_subjects AS t
        ON t.date = v.date AND t.submission_id = v.submission_id AND t.is_from_response
    LEFT JOIN submissions AS s ON s.date = v.date AND s.submission_id = v.submission_id
),
by_subject AS (
    SELECT
        subject,
        first_date,
        count(*) AS attempts,
        bool_or(verified AND attempt = 1) AS first_passed,
        bool_or(verified AND attempt <= 3) AS passed_within_3,
        bool_or(verified AND attempt <= 3 AND date - first_date < 7) AS passed_within_7_days
    FROM attempts
    GROUP BY subject, first_date
),
cohorts AS (
    SELECT
        first_date AS date,
        count(*) AS subjects,
        count(*) FILTER (WHERE attempts >= 2) AS repeat_subjects,
        count(*) FILTER (WHERE first_passed) AS first_attempt_passed,
        count(*) FILTER (WHERE passed_within_3) AS passed_within_3,
        count(*) FILTER (WHERE passed_within_7_days) AS passed_within_7_days
    FROM by_subject
    GROUP BY first_date
),
presented AS (
    SELECT id_document_pseudonym, subject, min(date) AS date
    FROM attempts
    WHERE id_document_pseudonym IS NOT NULL
    GROUP BY id_document_pseudonym, subject
),
nth_presented AS (
    SELECT date, row_number() OVER (PARTITION BY id_document_pseudonym ORDER BY date, subject) AS nth_subject
    FROM presented
),
shared AS (
    SELECT date, count(*) AS shared_documents
    FROM nth_presented
    WHERE nth_subject = 2
    GROUP BY date
),
last_day AS (
    SELECT max(date) AS last_date FROM submissions
)
SELECT
    date,
    coalesce(c.subjects, 0) AS subjects,
    coalesce(c.repeat_subjects, 0) AS repeat_subjects,
    coalesce(c.first_attempt_passed, 0) AS first_attempt_passed,
    coalesce(c.passed_within_3, 0) AS passed_within_3,
    coalesce(s.shared_documents, 0) AS shared_documents,
    coalesce(c.passed_within_7_days, 0) AS passed_within_7_days,
    coalesce(date + 7 <= l.last_date, FALSE) AS mature,
    y.is_complete
FROM cohorts AS c
FULL JOIN shared AS s USING (date)
JOIN days AS y USING (date)
CROSS JOIN last_day AS l
ORDER BY date
