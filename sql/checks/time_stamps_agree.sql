-- In responses of the last {recent_days} days, the ISO timestamp, read as UTC, equals the epoch timestamp.
--
-- severity: warning
-- counts: sum of verifications
-- todo: the figures use the epoch; ask DeepXL
SELECT iso_offset_seconds, count(*) AS verifications
FROM verifications
WHERE
    abs(iso_offset_seconds) >= {iso_offset_seconds}
    AND is_recent(date, (SELECT max(date) FROM verifications))
GROUP BY iso_offset_seconds
