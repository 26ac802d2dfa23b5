-- How the day's responses differ from the contract, by path and kind.
--
-- date: Day of the manifest, the daily partition.
-- path: Path in the response; `[]` is any list position, `?` a key that may be data, since it does not look
--   like a field name.
-- kind: Kind of difference, such as unknown_field, unknown_type or unknown_status.
-- occurrences: Number of occurrences on the day.
-- example_submission_id: First submission, by id, in which it occurs.
SELECT date, path, kind, occurrences, example_submission_id
FROM lake.contract_drift
ORDER BY date, path, kind
