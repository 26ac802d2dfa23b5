-- How the day's responses differ from the contract, by path and kind.
--
-- date: Day of the manifest, the daily partition.
-- path: Path in the response; `[]` is any list position, `?` a key that may be data, since it does not look
--   like a field name.
-- kind: Kind of difference, such as unknown_field, unknown_type or unknown_status.
-- occurrences: Number of occurrences on the day.
-- example_submission_id: First submission, by id, in which it occurs; empty if that one was erased.
-- is_complete: Whether no submission of the day is undecided; see days.
SELECT date, path, kind, occurrences, example_submission_id, is_complete
FROM lake.contract_drift
JOIN days USING (date)
ORDER BY date, path, kind
