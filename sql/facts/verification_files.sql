-- Fact: one row per file of a response, without file name and URL.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's verification id.
-- submission_id: Submission id, unique forever.
-- category: `id`, `face` or as received.
-- content_type: Media type as received.
-- file_size: Size in bytes, as received.
-- uploaded_at: Epoch timestamp of the file, as received (UTC).
SELECT date, verification_id, submission_id, category, content_type, file_size, uploaded_at
FROM lake.verification_files
