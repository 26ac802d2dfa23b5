-- The ISO text of the last 28 days' answers, read as UTC, is the same time as their epoch.
--
-- severity: warning
-- counts: sum of verifications
SELECT iso_offset_seconds, count(*) AS verifications
FROM verifications
WHERE abs(iso_offset_seconds) >= 1 AND date > (SELECT max(date) - 28 FROM verifications)
GROUP BY iso_offset_seconds
