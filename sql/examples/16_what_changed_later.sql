-- Figures of complete days that a later build changed, newest change first, with the old and the new value.
SELECT date, table_name, metric, check_type, was, "is", "is" - was AS change, first_seen_build, changed_by
FROM restatements
WHERE was_complete
ORDER BY changed_at DESC, date ASC, metric ASC;
