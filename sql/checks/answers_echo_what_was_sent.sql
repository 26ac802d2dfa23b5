-- The responses of the last {recent_days} days echo the sizes and tags that were sent, and have no other
-- anomaly.
--
-- severity: warning
-- counts: sum of anomalies
SELECT anomaly, count(*) AS anomalies
FROM (
    SELECT unnest(anomalies) AS anomaly
    FROM verifications
    WHERE is_recent(date, (SELECT max(date) FROM verifications))
) AS recent
GROUP BY anomaly
