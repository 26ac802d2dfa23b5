-- Verified rate over a window of seven days, which smooths weekends without hiding the counts. Its bounds
-- show what undecided submissions can change.
SELECT
    date,
    sum(verified) OVER week AS verified,
    sum(verifications) OVER week AS verifications,
    ratio(sum(verified) OVER week, sum(verifications) OVER week) AS verified_rate,
    rate_worst(sum(verified) OVER week, sum(verifications) OVER week, sum(undecided) OVER week) AS rate_worst,
    rate_best(sum(verified) OVER week, sum(verifications) OVER week, sum(undecided) OVER week) AS rate_best
FROM verified_rates
WINDOW week AS (ORDER BY date RANGE BETWEEN INTERVAL 6 DAYS PRECEDING AND CURRENT ROW)
ORDER BY date;
