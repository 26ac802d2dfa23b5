-- On none of the last 28 days were 10 % of the received rows, and at least 5, rejected.
--
-- severity: warning
-- counts: days
SELECT date, received, rejected
FROM submission_funnel
WHERE
    rejected >= 5
    AND rejected >= 0.1 * received
    AND date > (SELECT max(date) - 28 FROM submission_funnel)
