-- In the answers of the last {recent_days} days, sizes and tags are those that were sent, and there is no
-- other anomaly.
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
