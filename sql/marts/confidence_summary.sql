-- Summary statistics of the confidences by check type and day. Quantiles are interpolated linearly, as in
-- `quantile_cont`. All figures but the counts are NULL if no check has a confidence.
--
-- date: Day of the manifest, the daily partition.
-- check_group: Key under `modelResults`: `technicalChecks`, or OTHER (see model_checks).
-- check_type: Type of the check; OTHER if it is unknown, UNKNOWN if the response has none.
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
-- distinct_values: Number of distinct confidences.
-- saturated: Checks with a confidence of exactly 0 or 1.
-- is_complete: Whether no submission of the day is undecided; see days.
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
buckets AS (
    SELECT
        date,
        check_group,
        check_type,
        thousandths(confidence) AS bucket,
        sum(checks)::BIGINT AS checks
    FROM confidence_counts
    GROUP BY ALL
),
running AS (
    SELECT
        *,
        sum(checks) OVER (PARTITION BY date, check_group, check_type ORDER BY bucket)::BIGINT AS up_to,
        sum(checks) OVER (PARTITION BY date, check_group, check_type)::BIGINT AS n
    FROM buckets
),
points AS (
    -- Only the values of buckets that a quantile needs, because `quantile_cont` holds every value in memory.
    SELECT
        c.date,
        c.check_group,
        c.check_type,
        c.confidence,
        r.n,
        r.up_to - r.checks + sum(c.checks) OVER (
            PARTITION BY c.date, c.check_group, c.check_type, r.bucket ORDER BY c.confidence
        )::BIGINT AS up_to
    FROM confidence_counts AS c
    JOIN running AS r
        ON
            r.date = c.date
            AND r.check_group = c.check_group
            AND r.check_type = c.check_type
            AND r.bucket = thousandths(c.confidence)
    WHERE
        has_quantile(r.checks, r.up_to, r.n, 0.01)
        OR has_quantile(r.checks, r.up_to, r.n, 0.05)
        OR has_quantile(r.checks, r.up_to, r.n, 0.25)
        OR has_quantile(r.checks, r.up_to, r.n, 0.5)
        OR has_quantile(r.checks, r.up_to, r.n, 0.75)
        OR has_quantile(r.checks, r.up_to, r.n, 0.95)
        OR has_quantile(r.checks, r.up_to, r.n, 0.99)
),
quantiles AS (
    SELECT
        date,
        check_group,
        check_type,
        quantile_of_counts(confidence, up_to, n, 0.01) AS p01,
        quantile_of_counts(confidence, up_to, n, 0.05) AS p05,
        quantile_of_counts(confidence, up_to, n, 0.25) AS p25,
        quantile_of_counts(confidence, up_to, n, 0.5) AS p50,
        quantile_of_counts(confidence, up_to, n, 0.75) AS p75,
        quantile_of_counts(confidence, up_to, n, 0.95) AS p95,
        quantile_of_counts(confidence, up_to, n, 0.99) AS p99
    FROM points
    GROUP BY date, check_group, check_type
),
distinct_values AS (
    SELECT date, check_group, check_type, count(confidence) AS distinct_values
    FROM confidence_counts
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
    coalesce(d.distinct_values, 0) AS distinct_values,
    f.saturated,
    y.is_complete
FROM figures AS f
JOIN days AS y USING (date)
LEFT JOIN quantiles AS q USING (date, check_group, check_type)
LEFT JOIN distinct_values AS d USING (date, check_group, check_type)
ORDER BY f.date, f.check_group, f.check_type
