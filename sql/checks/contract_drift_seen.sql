-- The responses of the last {recent_days} days have no unknown check type, no unknown or repeated field, and
-- no value of an unexpected type.
--
-- severity: warning
-- counts: sum of occurrences
-- todo: read contract_drift; DeepXL changed its responses
SELECT kind, path, sum(occurrences) AS occurrences
FROM contract_drift
WHERE
    kind IN ({unexpected_kinds})
    AND is_recent(date, (SELECT max(date) FROM verifications))
GROUP BY kind, path
