-- The responses of the last {recent_days} days echo the sizes and tags that were sent, and have no anomaly
-- except those that other checks count.
--
-- severity: warning
-- counts: sum of anomalies
-- todo: read verifications.anomalies, and ask DeepXL
SELECT anomaly, count(*) AS anomalies
FROM (
    SELECT unnest(anomalies) AS anomaly
    FROM verifications
    WHERE is_recent(date, (SELECT max(date) FROM verifications))
) AS recent
WHERE anomaly NOT IN ({anomalies_with_a_check})
GROUP BY anomaly
