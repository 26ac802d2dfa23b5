-- Calls and cost by month; the cost per verified submission includes the calls for all others.
SELECT
    date_trunc('month', a.date)::DATE AS month,
    sum(a.calls) AS calls,
    sum(a.retries) AS retries,
    sum(a.estimated_cost) AS estimated_cost,
    sum(a.estimated_cost) / nullif(sum(f.verified), 0) AS cost_per_verified
FROM api_performance AS a
JOIN submission_funnel AS f USING (date)
GROUP BY month
ORDER BY month;
