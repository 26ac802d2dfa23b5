-- Calls to DeepXL by day: number, latency and estimated cost. Latencies are those of each submission's last
-- call with a sound response. All costs use the price at the time of the build
-- (`build_info.price_per_call`). In a build without `DEEPXL_PRICE_PER_CALL` they are NULL for all days, past
-- days included.
--
-- date: Day of the manifest, the daily partition.
-- calls: Requests of which at least a byte may have left.
-- retries: Calls beyond the first of each submission.
-- p50_ms: Median latency in milliseconds, from the start of a call to its complete response.
-- p90_ms: 90th percentile.
-- p95_ms: 95th percentile.
-- p99_ms: 99th percentile.
-- max_ms: Highest latency.
-- billable_calls: Calls that were or may have been billed: 2xx and ambiguous ones.
-- estimated_cost: billable_calls times `DEEPXL_PRICE_PER_CALL`, in the price's currency; NULL without a
--   price.
-- cost_per_verified: estimated_cost per verified submission; NULL without a price, if nobody was verified,
--   or on an incomplete day, which has calls without a verdict yet. Aggregate complete days only.
-- timeouts: Uncertain and abandoned submissions: sent, but without a sound response; latencies exclude them.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH responses AS (
    SELECT *, outcome IN ({outcomes_without_response}) AS is_timeout
    FROM lake.verification_responses
),
calls AS (
    SELECT
        date,
        sum(attempts)::BIGINT AS calls,
        sum(greatest(attempts - 1, 0))::BIGINT AS retries,
        quantile_cont(latency_ms, [0.5, 0.9, 0.95, 0.99]) FILTER (WHERE NOT is_timeout) AS quantiles,
        max(latency_ms) FILTER (WHERE NOT is_timeout) AS max_ms,
        sum(billable_calls)::BIGINT AS billable_calls,
        count(*) FILTER (WHERE is_timeout) AS timeouts
    FROM responses
    GROUP BY date
),
decided AS (
    SELECT date, count(*) FILTER (WHERE verified) AS verified
    FROM verifications
    GROUP BY date
),
costs AS (
    SELECT *, cost_of(billable_calls) AS estimated_cost
    FROM calls
)
SELECT
    c.date,
    c.calls,
    c.retries,
    c.quantiles[1] AS p50_ms,
    c.quantiles[2] AS p90_ms,
    c.quantiles[3] AS p95_ms,
    c.quantiles[4] AS p99_ms,
    c.max_ms,
    c.billable_calls,
    c.estimated_cost,
    CASE WHEN y.is_complete THEN (c.estimated_cost / nullif(d.verified, 0))::DECIMAL(38, 6) END
        AS cost_per_verified,
    c.timeouts,
    y.is_complete
FROM costs AS c
LEFT JOIN decided AS d ON d.date = c.date
JOIN days AS y ON y.date = c.date
ORDER BY c.date
