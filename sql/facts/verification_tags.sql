-- Fact: one row per tag of an answer; values only for the tags that analysts may see.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's id of the verification.
-- submission_id: The submission's id, unique for ever.
-- name: The tag's name.
-- value: Its value, only for the names in `KYC_CLEAR_TAGS`.
-- pseudonym: HMAC-SHA-256 of the value, separate for each name.
SELECT date, verification_id, submission_id, name, value, pseudonym
FROM lake.verification_tags
