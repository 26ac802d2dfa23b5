-- In the last 28 days nobody was verified with a failed check, or not verified though none failed.
--
-- severity: warning
-- counts: sum of verifications
SELECT date, check_type AS kind, failing AS verifications
FROM failure_attribution
WHERE
    check_group = 'verdict'
    AND failing > 0
    AND date > (SELECT max(date) - 28 FROM verifications)
