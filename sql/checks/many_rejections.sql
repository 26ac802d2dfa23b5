-- On each of the last {recent_days} days, fewer than {rejected_rows} rows or less than {rejected_percent} of
-- the received rows were rejected.
--
-- severity: warning
-- counts: days
-- todo: read them with `kyc-pipeline rejected`, and correct the manifests
SELECT date, received, rejected
FROM submission_funnel
WHERE
    rejected >= {rejected_rows}
    AND rejected >= {rejected_share} * received
    AND is_recent(date, (SELECT max(date) FROM submission_funnel))
