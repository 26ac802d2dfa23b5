-- Number of manifest rows that could not be submitted, by reason.
--
-- date: Day of the manifest, the daily partition.
-- reason: One of the documented reasons, such as file_not_found.
-- rejected: Rows rejected for this reason.
-- is_complete: Whether no submission of the day is undecided; see days.
SELECT date, reason, count(*) AS rejected, any_value(is_complete) AS is_complete
FROM lake.rejected_submissions
JOIN days USING (date)
GROUP BY date, reason
ORDER BY date, reason
