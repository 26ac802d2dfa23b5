-- On none of the last {recent_days} days were at least {rejected_percent} of the received rows, and at least
-- {rejected_rows} of them, rejected.
--
-- severity: warning
-- counts: days
SELECT date, received, rejected
FROM submission_funnel
WHERE
    rejected >= {rejected_rows}
    AND rejected >= {rejected_share} * received
    AND is_recent(date, (SELECT max(date) FROM submission_funnel))
