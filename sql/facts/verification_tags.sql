-- Fact: one row per tag of an answer; values only for the tags that analysts may see.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's id of the verification.
-- submission_id: The submission's id, unique for ever.
-- name: The tag's name.
-- value: The tag's value, only for names in `KYC_CLEAR_TAGS`; otherwise NULL.
-- pseudonym: HMAC-SHA-256 of the value, different for each tag name.
SELECT date, verification_id, submission_id, name, value, pseudonym
FROM lake.verification_tags
