-- Share of verifications whose decision was `verified`, by day and company, with its 95% Wilson interval. A
-- company has a row on days with verifications or undecided submissions of it.
--
-- date: Day of the manifest, the daily partition.
-- company_id: Value of the tag `companyId` in the manifest; UNKNOWN without it, {suppressed} for all
--   companies with few people: see submissions.
-- verifications: Completed verifications.
-- verified: Those whose decision was `verified`.
-- verified_rate: verified / verifications; NULL without verifications.
-- verified_rate_low: Lower bound of the 95% Wilson interval (z = {z_95}).
-- verified_rate_high: Upper bound of the same interval.
-- low_n: Fewer than {low_n} verifications: do not base decisions on this row alone.
-- undecided: Submissions of the company that may still get a verdict; see days.
-- rate_worst: The rate if none of them is verified; without undecided ones, the rate itself.
-- rate_best: The rate if all of them are.
-- is_complete: Whether none is undecided.
WITH counts AS (
    SELECT
        date,
        company_id,
        coalesce(sum(submissions) FILTER (WHERE verified IS NOT NULL), 0)::BIGINT AS verifications,
        coalesce(sum(submissions) FILTER (WHERE verified), 0)::BIGINT AS verified,
        coalesce(sum(submissions) FILTER (WHERE is_undecided), 0)::BIGINT AS undecided
    FROM submission_counts
    GROUP BY date, company_id
)
SELECT
    date,
    company_id,
    verifications,
    verified,
    ratio(verified, verifications) AS verified_rate,
    wilson_low(verified, verifications) AS verified_rate_low,
    wilson_high(verified, verifications) AS verified_rate_high,
    is_low_n(verifications) AS low_n,
    undecided,
    rate_worst(verified, verifications, undecided) AS rate_worst,
    rate_best(verified, verifications, undecided) AS rate_best,
    undecided = 0 AS is_complete
FROM counts
WHERE verifications > 0 OR undecided > 0
ORDER BY date, company_id
