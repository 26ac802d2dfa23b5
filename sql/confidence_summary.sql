-- Confidences by check type and day: how many, mean, spread and quantiles (linear interpolation, DuckDB's
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
        quantile_cont(confidence, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]) AS quantiles,
        max(confidence) AS max,
        count(DISTINCT confidence) AS distinct_values,
        count(*) FILTER (WHERE confidence IN (0, 1)) AS saturated
    FROM model_checks
    GROUP BY date, check_group, check_type
)
SELECT
    date,
    check_group,
    check_type,
    checks,
    with_confidence,
    mean,
    stddev,
    min,
    quantiles[1] AS p01,
    quantiles[2] AS p05,
    quantiles[3] AS p25,
    quantiles[4] AS p50,
    quantiles[5] AS p75,
    quantiles[6] AS p95,
    quantiles[7] AS p99,
    max,
    distinct_values,
    saturated
FROM figures
ORDER BY date, check_group, check_type
