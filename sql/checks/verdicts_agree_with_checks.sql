-- In the last {recent_days} days, nobody was verified with a failed check, or declined without one.
--
-- severity: warning
-- counts: sum of verifications
-- todo: read failure_attribution
SELECT date, check_type AS kind, failing AS verifications
FROM failure_attribution
WHERE
    check_group = 'verdict'
    AND failing > 0
    AND is_recent(date, (SELECT max(date) FROM verifications))
