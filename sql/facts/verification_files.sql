-- Fact: one row per file of a response, without file name and URL.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's verification id.
-- submission_id: Submission id, unique forever.
-- category: As received, such as `id` or `face`; OTHER if it is not a known word.
-- content_type: Media type as received; OTHER if it is not a known one.
-- file_size: Size in bytes, as received.
-- uploaded_at: Epoch timestamp of the file, as received (UTC).
-- is_complete: Whether no submission of the day is undecided; see days.
SELECT
    date,
    verification_id,
    submission_id,
    category,
    content_type,
    file_size,
    uploaded_at AT TIME ZONE 'UTC' AS uploaded_at,
    date IN (
        SELECT date
        FROM days
        WHERE is_complete
    ) AS is_complete
FROM lake.verification_files
