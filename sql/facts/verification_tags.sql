-- Fact: one row per tag of a response; only tags that analysts may see have a value.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's verification id.
-- submission_id: Submission id, unique forever.
-- name: Tag name.
-- value: Tag value, only for names in `KYC_CLEAR_TAGS`; otherwise NULL.
-- pseudonym: HMAC-SHA-256 of the value; each tag name has pseudonyms of its own.
SELECT date, verification_id, submission_id, name, value, pseudonym
FROM lake.verification_tags
