-- Sizes and tags in the last 28 days' answers are those that were sent, and nothing else is odd in them.
--
-- severity: warning
-- counts: sum of anomalies
SELECT anomaly, count(*) AS anomalies
FROM (
    SELECT unnest(anomalies) AS anomaly
    FROM verifications
    WHERE date > (SELECT max(date) - 28 FROM verifications)
) AS recent
GROUP BY anomaly
