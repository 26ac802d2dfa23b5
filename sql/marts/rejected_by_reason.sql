-- Number of manifest rows that could not be submitted, by reason.
--
-- date: Day of the manifest, the daily partition.
-- reason: One of the documented reasons, such as file_not_found.
-- rejected: Rows rejected for this reason.
SELECT date, reason, count(*) AS rejected
FROM lake.rejected_submissions
GROUP BY date, reason
ORDER BY date, reason
