-- Steps of the proofing process, by person: of the people who had a check, those who never passed it. Each
-- person counts once per check, on the day of their first submission; see subjects.
--
-- date: Day on which these people first submitted.
-- check_group: As in model_checks.
-- check_type: As in model_checks.
-- subjects: People with at least one such check, at any attempt.
-- never_passed: Those who passed it at no attempt: none of these checks has the status PASS.
-- never_passed_rate: never_passed / subjects.
-- never_passed_rate_low: Lower bound of the 95% Wilson interval (z = {z_95}).
-- never_passed_rate_high: Upper bound of the same interval.
-- low_n: Fewer than {low_n} people: do not base decisions on this row alone.
-- undecided: Those of never_passed with submissions that may still get a verdict.
-- rate_worst: never_passed_rate if none of them passes: the rate itself.
-- rate_best: never_passed_rate if all of them pass.
-- is_complete: Whether nobody who first submitted on the day has such a submission; people with one may not
--   have had the check yet, and then count in no figure.
WITH people AS (
    SELECT
        p.subject,
        min(s.date) AS date,
        count(*) FILTER (WHERE is_undecided(s.outcome, s.verified)) AS undecided
    FROM submissions AS s
    JOIN submission_subjects AS p ON p.date = s.date AND p.submission_id = s.submission_id
    GROUP BY p.subject
),
steps AS (
    SELECT
        p.subject,
        c.check_group,
        c.check_type,
        bool_or(c.normalized_status = 'PASS') AS has_passed
    FROM model_checks AS c
    JOIN submission_subjects AS p ON p.date = c.date AND p.submission_id = c.submission_id
    GROUP BY p.subject, c.check_group, c.check_type
),
counts AS (
    SELECT
        p.date,
        s.check_group,
        s.check_type,
        count(*) AS subjects,
        count(*) FILTER (WHERE NOT s.has_passed) AS never_passed,
        count(*) FILTER (WHERE NOT s.has_passed AND p.undecided > 0) AS undecided
    FROM steps AS s
    JOIN people AS p ON p.subject = s.subject
    GROUP BY p.date, s.check_group, s.check_type
),
open_days AS (
    SELECT DISTINCT date
    FROM people
    WHERE undecided > 0
)
SELECT
    date,
    check_group,
    check_type,
    subjects,
    never_passed,
    ratio(never_passed, subjects) AS never_passed_rate,
    wilson_low(never_passed, subjects) AS never_passed_rate_low,
    wilson_high(never_passed, subjects) AS never_passed_rate_high,
    is_low_n(subjects) AS low_n,
    undecided,
    ratio(never_passed, subjects) AS rate_worst,
    ratio(never_passed - undecided, subjects) AS rate_best,
    date NOT IN (
        SELECT date
        FROM open_days
    ) AS is_complete
FROM counts
ORDER BY date, check_group, check_type
