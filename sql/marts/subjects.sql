-- One row per person, over all their submissions in the order of day, submitted_at and submission id. A
-- person is a pseudonym of the tags in `KYC_SUBJECT_TAGS`, by default company and customer. Without a
-- response that has these tags, a person has no pseudonym and no row.
--
-- subject: Pseudonym of the person, 32 hexadecimal digits; it changes with the key.
-- first_date: Day of their first submission.
-- last_date: Day of their last one.
-- attempts: Their submissions.
-- verified: Whether any was verified.
-- final_outcome: Result of the last one: verified, not_verified, or its outcome if it has no verdict.
-- attempts_to_success: Number of the first verified one; NULL if none was.
-- days_to_success: Days from first_date to the day of the first verified one; NULL if none was.
-- undecided: Submissions that may still get a verdict; see days.
-- billable_calls: Calls for them that were or may have been billed: 2xx and ambiguous ones.
-- estimated_cost: billable_calls times `DEEPXL_PRICE_PER_CALL`; NULL without a price.
-- first_verified: Whether the first submission was verified.
WITH numbered AS (
    SELECT
        p.subject AS person,
        s.date,
        s.verified,
        CASE s.verified WHEN TRUE THEN 'verified' WHEN FALSE THEN 'not_verified' ELSE s.outcome END AS result,
        is_undecided(s.outcome, s.verified) AS is_undecided,
        s.billable_calls,
        row_number() OVER (
            PARTITION BY p.subject ORDER BY s.date, s.submitted_at NULLS LAST, s.submission_id
        ) AS attempt
    FROM submissions AS s
    JOIN submission_subjects AS p ON p.date = s.date AND p.submission_id = s.submission_id
)
SELECT
    lpad(
        lower(hex(md5_number(concat(digits_of(person), ':', getvariable('subject_secret'))))), 32, '0'
    ) AS subject,
    min(date) AS first_date,
    max(date) AS last_date,
    count(*) AS attempts,
    coalesce(bool_or(verified), FALSE) AS verified,
    arg_max(result, attempt) AS final_outcome,
    min(attempt) FILTER (WHERE verified) AS attempts_to_success,
    min(date) FILTER (WHERE verified) - min(date) AS days_to_success,
    count(*) FILTER (WHERE is_undecided) AS undecided,
    sum(billable_calls)::BIGINT AS billable_calls,
    cost_of(sum(billable_calls)) AS estimated_cost,
    coalesce(bool_or(verified AND attempt = 1), FALSE) AS first_verified
FROM numbered
GROUP BY person
ORDER BY first_date, subject
