-- The answers of the last 28 days have no unknown check type or field and no value of another type.
--
-- severity: warning
-- counts: sum of occurrences
SELECT kind, path, sum(occurrences) AS occurrences
FROM contract_drift
WHERE
    kind IN ('unknown_type', 'unknown_field', 'type_mismatch')
    AND date > (SELECT max(date) - 28 FROM verifications)
GROUP BY kind, path
