-- Where the day's answers differ from the API's contract, by path and kind.
--
-- date: Day of the manifest, the daily partition.
-- path: Path in the answer; `[]` stands for any position of a list, `?` for a key that does not look like a
--   name, since it may be data.
-- kind: How it differs, such as unknown_field, unknown_type or unknown_status.
-- occurrences: Number of occurrences on that day.
-- example_submission_id: The first submission (by id) where it occurs.
SELECT date, path, kind, occurrences, example_submission_id
FROM lake.contract_drift
ORDER BY date, path, kind
