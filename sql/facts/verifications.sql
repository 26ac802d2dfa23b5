-- Fact: one row per completed verification, in the order of the lake.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's id of the verification, unique.
-- submission_id: The submission's id, unique for ever.
-- verified: DeepXL's decision.
-- model: Model as named in the answer.
-- model_version: Model version, if the answer has one.
-- verified_at: The answer's epoch time stamp (UTC).
-- timestamp_iso: ISO time stamp as received; its time zone is unknown.
-- iso_offset_seconds: ISO time stamp, read as UTC, minus the epoch, in seconds: a data-quality figure.
-- id_file_type: Type of the ID document, from the answer.
-- id_file_size: Bytes of the ID document, from the answer.
-- selfie_file_type: Type of the selfie, from the answer.
-- selfie_file_size: Bytes of the selfie, from the answer.
-- check_count: Checks in the answer, over all groups.
-- id_document_pseudonym: HMAC of the ID document's content: equal for equal files under the same key.
-- anomalies: Codes of what differs from the contract or from what was sent.
SELECT
    date,
    verification_id,
    submission_id,
    verified,
    model,
    model_version,
    verified_at,
    timestamp_iso,
    iso_offset_seconds,
    id_file_type,
    id_file_size,
    selfie_file_type,
    selfie_file_size,
    check_count,
    id_document_pseudonym,
    anomalies
FROM lake.verifications
