-- Confidences by check type and day: how many, mean, spread and quantiles (linear interpolation, as DuckDB's
-- `quantile_cont`). All figures but the counts are NULL where no check has a confidence.
--
-- date: Day of the manifest, the daily partition.
-- check_group: Key under `modelResults`, such as `technicalChecks`.
-- check_type: Which check; UNKNOWN where the answer names none.
-- checks: All checks of this type.
-- with_confidence: Those with a confidence in [0, 1].
-- mean: Mean confidence.
-- stddev: Sample standard deviation; NULL for a single value.
-- min: Smallest confidence.
-- p01: 1st percentile.
-- p05: 5th percentile.
-- p25: 25th percentile.
-- p50: Median.
-- p75: 75th percentile.
-- p95: 95th percentile.
-- p99: 99th percentile.
-- max: Largest confidence.
-- distinct_values: Different values of the confidence.
-- saturated: Checks with a confidence of exactly 0 or 1.
WITH figures AS (
    SELECT
        date,
        check_group,
        check_type,
        count(*) AS checks,
        count(confidence) AS with_confidence,
        avg(confidence) AS mean,
        stddev_samp(confidence) AS stddev,
        min(confidence) AS min,
        max(confidence) AS max,
        count(*) FILTER (WHERE confidence IN (0, 1)) AS saturated
    FROM model_checks
    GROUP BY date, check_group, check_type
),
counts AS (
    -- For quantiles from running counts: `quantile_cont` itself holds every value in memory.
    SELECT date, check_group, check_type, confidence, count(*) AS checks
    FROM model_checks
    WHERE confidence IS NOT NULL
    GROUP BY ALL
),
running AS (
    SELECT
        date,
        check_group,
        check_type,
        confidence,
        sum(checks) OVER (PARTITION BY date, check_group, check_type ORDER BY confidence)::BIGINT AS up_to,
        sum(checks) OVER (PARTITION BY date, check_group, check_type)::BIGINT AS n
    FROM counts
),
quantiles AS (
    SELECT
        date,
        check_group,
        check_type,
        count(*) AS distinct_values,
        quantile_of_counts(confidence, up_to, n, 0.01) AS p01,
        quantile_of_counts(confidence, up_to, n, 0.05) AS p05,
        quantile_of_counts(confidence, up_to, n, 0.25) AS p25,
        quantile_of_counts(confidence, up_to, n, 0.5) AS p50,
        quantile_of_counts(confidence, up_to, n, 0.75) AS p75,
        quantile_of_counts(confidence, up_to, n, 0.95) AS p95,
        quantile_of_counts(confidence, up_to, n, 0.99) AS p99
    FROM running
    GROUP BY date, check_group, check_type
)
SELECT
    f.date,
    f.check_group,
    f.check_type,
    f.checks,
    f.with_confidence,
    f.mean,
    f.stddev,
    f.min,
    q.p01,
    q.p05,
    q.p25,
    q.p50,
    q.p75,
    q.p95,
    q.p99,
    f.max,
    coalesce(q.distinct_values, 0) AS distinct_values,
    f.saturated
FROM figures AS f
LEFT JOIN quantiles AS q USING (date, check_group, check_type)
ORDER BY f.date, f.check_group, f.check_type
