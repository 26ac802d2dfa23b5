-- Share of people who were verified, by the day of their first submission, with its 95% Wilson interval. Each
-- person counts once, however often they tried: see subjects. Compare only mature days: recent ones have had
-- less time to try again.
--
-- date: Day on which these people first submitted.
-- subjects: People first seen on that day.
-- verified: Those verified at any attempt, up to the last day of the data.
-- verified_rate: verified / subjects.
-- verified_rate_low: Lower bound of the 95% Wilson interval (z = {z_95}).
-- verified_rate_high: Upper bound of the same interval.
-- low_n: Fewer than {low_n} people: do not base decisions on this row alone.
-- first_verified: Those verified at their first attempt.
-- first_verified_rate: first_verified / subjects.
-- first_verified_rate_low: Lower bound of its 95% Wilson interval.
-- first_verified_rate_high: Upper bound of the same interval.
-- verified_within_7_days: Those verified less than 7 days after the first attempt's day.
-- mature: Whether the data extend 7 days beyond the day, so that verified_within_7_days is final.
-- undecided: People not verified with submissions that may still get a verdict.
-- rate_worst: verified_rate if none of them is verified; without undecided people, the rate itself.
-- rate_best: verified_rate if all of them are.
-- is_complete: Whether nobody is undecided.
WITH counts AS (
    SELECT
        first_date AS date,
        count(*) AS subjects,
        count(*) FILTER (WHERE verified) AS verified,
        count(*) FILTER (WHERE first_verified) AS first_verified,
        count(*) FILTER (WHERE days_to_success < 7) AS verified_within_7_days,
        count(*) FILTER (WHERE NOT verified AND undecided > 0) AS undecided
    FROM subjects
    GROUP BY first_date
),
last_day AS (
    SELECT max(date) AS last_date FROM submissions
)
SELECT
    c.date,
    c.subjects,
    c.verified,
    ratio(c.verified, c.subjects) AS verified_rate,
    wilson_low(c.verified, c.subjects) AS verified_rate_low,
    wilson_high(c.verified, c.subjects) AS verified_rate_high,
    is_low_n(c.subjects) AS low_n,
    c.first_verified,
    ratio(c.first_verified, c.subjects) AS first_verified_rate,
    wilson_low(c.first_verified, c.subjects) AS first_verified_rate_low,
    wilson_high(c.first_verified, c.subjects) AS first_verified_rate_high,
    c.verified_within_7_days,
    c.date + 7 <= l.last_date AS mature,
    c.undecided,
    rate_worst(c.verified, c.subjects - c.undecided, c.undecided) AS rate_worst,
    rate_best(c.verified, c.subjects - c.undecided, c.undecided) AS rate_best,
    c.undecided = 0 AS is_complete
FROM counts AS c
CROSS JOIN last_day AS l
ORDER BY c.date
