-- Calls and cost by month. The cost per verified submission includes the calls for all other submissions, and
-- covers complete days only: an incomplete day has calls without a verdict yet.
SELECT
    date_trunc('month', a.date)::DATE AS month,
    sum(a.calls) AS calls,
    sum(a.retries) AS retries,
    sum(a.estimated_cost) AS estimated_cost,
    sum(a.estimated_cost) FILTER (WHERE a.is_complete)
    / nullif(sum(f.verified) FILTER (WHERE a.is_complete), 0) AS cost_per_verified,
    count(*) FILTER (WHERE NOT a.is_complete) AS incomplete_days
FROM api_performance AS a
JOIN submission_funnel AS f USING (date)
GROUP BY month
ORDER BY month;
