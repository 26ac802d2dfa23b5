-- Fact: one row per file of an answer, without its name and URL.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's id of the verification.
-- submission_id: The submission's id, unique for ever.
-- category: `id`, `face` or as received.
-- content_type: Media type as received.
-- file_size: Bytes as received.
-- uploaded_at: The file's epoch time stamp (UTC).
SELECT date, verification_id, submission_id, category, content_type, file_size, uploaded_at
FROM lake.verification_files
