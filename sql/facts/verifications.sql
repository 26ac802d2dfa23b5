-- Fact: one row per completed verification, in the order of the lake.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's verification id.
-- submission_id: Submission id, unique forever.
-- verified: DeepXL's decision.
-- model: Model name from the response; OTHER if it is not a known one.
-- model_version: Model version, if the response has one; OTHER if it is no version.
-- verified_at: Epoch timestamp from the response (UTC).
-- timestamp_iso: ISO timestamp as received, whose time zone is unknown; OTHER if it is no timestamp.
-- iso_offset_seconds: `timestamp_iso`, read as UTC, minus `verified_at`, in seconds: a data-quality figure.
-- id_file_type: File type of the ID document, from the response; OTHER if it is not a known one.
-- id_file_size: Size of the ID document in bytes, from the response.
-- selfie_file_type: File type of the selfie, from the response; OTHER if it is not a known one.
-- selfie_file_size: Size of the selfie in bytes, from the response.
-- check_count: Number of checks in the response, over all groups.
-- id_document_pseudonym: HMAC of the ID document's content: equal for equal files, under one key.
-- anomalies: Codes of the response's differences from the contract and from what was sent.
-- is_complete: Whether no submission of the day is undecided; see days.
SELECT
    date,
    verification_id,
    submission_id,
    verified,
    model,
    model_version,
    verified_at AT TIME ZONE 'UTC' AS verified_at,
    timestamp_iso,
    iso_offset_seconds,
    id_file_type,
    id_file_size,
    selfie_file_type,
    selfie_file_size,
    check_count,
    id_document_pseudonym,
    anomalies,
    date IN (
        SELECT date
        FROM days
        WHERE is_complete
    ) AS is_complete
FROM lake.verifications
