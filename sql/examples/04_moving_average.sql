-- Verified rate over a window of seven days, which smooths weekends without hiding the counts.
SELECT
    date,
    sum(verified) OVER week AS verified,
    sum(verifications) OVER week AS verifications,
    ratio(sum(verified) OVER week, sum(verifications) OVER week) AS verified_rate
FROM verified_rates
WINDOW week AS (ORDER BY date RANGE BETWEEN INTERVAL 6 DAYS PRECEDING AND CURRENT ROW)
ORDER BY date;
