-- Fact: one row per submission accepted from the manifests, with its outcome.
--
-- date: Day of the manifest, the daily partition.
-- submission_id: Submission id, unique forever.
-- submitted_at: Time of the submission, from the manifest (UTC); NULL if it has none.
-- outcome: completed, refused, quarantined, uncertain, failed or not_attempted (also if the day's
--   verification has not run yet); NULL only if the submission is unaccounted for, which stops publication.
-- attempts: POST calls started for this submission, over all runs.
-- http_status: HTTP status of the last response; NULL if there was none.
-- latency_ms: Milliseconds from the start of the last call to its complete response, on a monotonic clock.
SELECT
    s.date,
    s.submission_id,
    s.submitted_at,
    CASE WHEN verified_days.date IS NULL THEN 'not_attempted' ELSE r.outcome END AS outcome,
    coalesce(r.attempts, 0) AS attempts,
    r.http_status,
    r.latency_ms
FROM lake.submissions AS s
LEFT JOIN lake.verification_responses AS r ON r.date = s.date AND r.submission_id = s.submission_id
LEFT JOIN (
    SELECT date
    FROM lake.partitions
    WHERE table_name = 'verification_responses'
) AS verified_days ON verified_days.date = s.date
ORDER BY s.date, s.submission_id
