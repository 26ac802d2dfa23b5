-- No rate raised an alarm in the last {recent_days} days that no known event explains. On average, at most
-- one such alarm a year is false.
--
-- severity: warning
-- counts: alarms
-- todo: read `alarms`; its column look_at says where to look next
SELECT from_date AS date, series, kind, effect, evidence
FROM alarms
WHERE explained_by IS NULL AND is_recent(to_date, (SELECT max(date) FROM days))
