-- Share of verifications whose decision was `verified`, by day, with its 95% Wilson interval. On an
-- incomplete day the rate is of what is decided so far, which may be a biased part: use its bounds. Each day
-- has a row, even without a verdict, so that the bounds of a period can be computed from the sums.
--
-- date: Day of the manifest, the daily partition.
-- verifications: Completed verifications.
-- verified: Those whose decision was `verified`.
-- verified_rate: verified / verifications; NULL without verifications.
-- verified_rate_low: Lower bound of the 95% Wilson interval (z = {z_95}).
-- verified_rate_high: Upper bound of the same interval.
-- low_n: Fewer than {low_n} verifications: do not base decisions on this row alone.
-- undecided: Submissions that may still get a verdict; see days.
-- rate_worst: The rate if none of them is verified; on a complete day, the rate itself.
-- rate_best: The rate if all of them are.
-- is_complete: Whether none is undecided.
WITH counts AS (
    SELECT date, count(*) AS verifications, count(*) FILTER (WHERE verified) AS verified
    FROM verifications
    GROUP BY date
),
all_days AS (
    SELECT
        date,
        coalesce(c.verifications, 0) AS verifications,
        coalesce(c.verified, 0) AS verified,
        undecided,
        is_complete
    FROM days
    LEFT JOIN counts AS c USING (date)
)
SELECT
    date,
    verifications,
    verified,
    ratio(verified, verifications) AS verified_rate,
    wilson_low(verified, verifications) AS verified_rate_low,
    wilson_high(verified, verifications) AS verified_rate_high,
    is_low_n(verifications) AS low_n,
    undecided,
    rate_worst(verified, verifications, undecided) AS rate_worst,
    rate_best(verified, verifications, undecided) AS rate_best,
    is_complete
FROM all_days
ORDER BY date
