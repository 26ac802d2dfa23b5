-- Time from a submission (`submitted_at` in the manifest) to its verdict, by day. Submissions without
-- `submitted_at` are left out. The target is `KYC_VERDICT_TARGET_SECONDS`.
--
-- date: Day of the manifest, the daily partition.
-- verdicts: Submissions with a verdict and a known time.
-- mean_seconds: Mean time from submitted_at to the complete response.
-- p50_seconds: Median time from submitted_at to the complete response.
-- p90_seconds: 90th percentile (`quantile_cont`).
-- target_seconds: The target at the time of the build.
-- within_target: Verdicts that came within the target.
-- within_target_rate: within_target / verdicts.
-- within_target_rate_low: Lower bound of the 95% Wilson interval (z = {z_95}).
-- within_target_rate_high: Upper bound of the same interval.
-- low_n: Fewer than {low_n} verdicts: do not base decisions on this row alone.
-- undecided: Submissions with submitted_at that may still get a verdict; see days. The quantiles leave them
--   out.
-- rate_worst: within_target_rate if all of them come too late; without undecided ones, the rate itself.
-- rate_best: within_target_rate if all of them come in time.
-- is_complete: Whether none is undecided.
WITH times AS (
    SELECT
        s.date,
        CASE
            WHEN s.verified IS NOT NULL
                THEN extract(EPOCH FROM r.responded_at AT TIME ZONE 'UTC' - s.submitted_at)
        END AS seconds,
        is_undecided(s.outcome, s.verified) AS is_undecided
    FROM submissions AS s
    LEFT JOIN lake.verification_responses AS r ON r.date = s.date AND r.submission_id = s.submission_id
    WHERE s.submitted_at IS NOT NULL
),
counts AS (
    SELECT
        date,
        count(seconds) AS verdicts,
        avg(seconds) AS mean_seconds,
        quantile_cont(seconds, [0.5, 0.9]) AS quantiles,
        count(*) FILTER (WHERE seconds <= getvariable('verdict_target_seconds')) AS within_target,
        count(*) FILTER (WHERE is_undecided) AS undecided
    FROM times
    GROUP BY date
)
SELECT
    date,
    verdicts,
    mean_seconds,
    quantiles[1] AS p50_seconds,
    quantiles[2] AS p90_seconds,
    getvariable('verdict_target_seconds') AS target_seconds,
    within_target,
    ratio(within_target, verdicts) AS within_target_rate,
    wilson_low(within_target, verdicts) AS within_target_rate_low,
    wilson_high(within_target, verdicts) AS within_target_rate_high,
    is_low_n(verdicts) AS low_n,
    undecided,
    rate_worst(within_target, verdicts, undecided) AS rate_worst,
    rate_best(within_target, verdicts, undecided) AS rate_best,
    undecided = 0 AS is_complete
FROM counts
ORDER BY date
