-- Share of verifications whose decision was `verified`, by day and value of each dimension, with its 95%
-- Wilson interval: the tags of `KYC_DIMENSIONS`, and the model version. Each dimension has every
-- verification once. A value has a row on days with verifications or undecided submissions of it.
--
-- date: Day of the manifest, the daily partition.
-- dimension: Name of the tag, or `model_version`.
-- value: Its value in the manifest, or in the response for `model_version`; UNKNOWN without one, {suppressed}
--   for all values with few people: see submissions.
-- verifications: Completed verifications.
-- verified: Those whose decision was `verified`.
-- verified_rate: verified / verifications; NULL without verifications.
-- verified_rate_low: Lower bound of the 95% Wilson interval (z = {z_95}).
-- verified_rate_high: Upper bound of the same interval.
-- low_n: Fewer than {low_n} verifications: do not base decisions on this row alone.
-- undecided: Submissions with this value that may still get a verdict; all of the day for each
--   `model_version`, since any may give the verdict.
-- rate_worst: The rate if none of them is verified; without undecided ones, the rate itself.
-- rate_best: The rate if all of them are.
-- is_complete: Whether none is undecided.
WITH sliced AS (
    SELECT
        date,
        unnest(map_keys(dimensions)) AS dimension,
        unnest(map_values(dimensions)) AS value,
        verified,
        is_undecided,
        submissions
    FROM submission_counts
),
counts AS (
    SELECT
        date,
        dimension,
        value,
        coalesce(sum(submissions) FILTER (WHERE verified IS NOT NULL), 0)::BIGINT AS verifications,
        coalesce(sum(submissions) FILTER (WHERE verified), 0)::BIGINT AS verified,
        coalesce(sum(submissions) FILTER (WHERE is_undecided), 0)::BIGINT AS undecided
    FROM sliced
    GROUP BY date, dimension, value
),
versions AS (
    SELECT DISTINCT value
    FROM counts
    WHERE dimension = 'model_version' AND verifications > 0
),
bounded AS (
    SELECT date, dimension, value, verifications, verified, undecided
    FROM counts
    WHERE dimension <> 'model_version'
    UNION ALL
    SELECT
        d.date,
        'model_version' AS dimension,
        v.value,
        coalesce(c.verifications, 0) AS verifications,
        coalesce(c.verified, 0) AS verified,
        d.undecided
    FROM days AS d
    CROSS JOIN versions AS v
    LEFT JOIN counts AS c ON c.date = d.date AND c.dimension = 'model_version' AND c.value = v.value
)
SELECT
    date,
    dimension,
    value,
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
FROM bounded
WHERE verifications > 0 OR undecided > 0
ORDER BY date, dimension, value
