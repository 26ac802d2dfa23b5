-- Pass rate of each check over the complete days among the recent ones (macro `is_recent`), with its
-- interval. It adds up the counts: never average rates.
SELECT
    check_group,
    check_type,
    sum(passed) AS passed,
    sum(passed + failed) AS decided,
    ratio(sum(passed), sum(passed + failed)) AS pass_rate,
    wilson_low(sum(passed), sum(passed + failed)) AS pass_rate_low,
    wilson_high(sum(passed), sum(passed + failed)) AS pass_rate_high
FROM pass_rates
WHERE is_complete AND is_recent(date, (SELECT max(date) FROM pass_rates))
GROUP BY check_group, check_type
ORDER BY pass_rate;
