-- Fact: one row per tag of a response, and per tag of its submission that was not sent; only tags that
-- analysts may see have a value. Where `submissions` hides a company or the value of a dimension, its tags
-- have no row. A row would tell these submissions from hidden ones that never had the tag. If this is a view
-- over the lake, submissions that came after the build have no rows before the next one.
--
-- date: Day of the manifest, the daily partition.
-- verification_id: DeepXL's verification id.
-- submission_id: Submission id, unique forever.
-- name: Tag name; OTHER if the submission does not have it.
-- value: Tag value, only for names in `KYC_CLEAR_TAGS`; otherwise NULL.
-- pseudonym: HMAC-SHA-256 of the value; each tag name has pseudonyms of its own.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH hidden AS (
    SELECT date, submission_id, unnest(['{company_tag}', '{company_name_tag}']) AS name
    FROM submissions
    WHERE company_id = '{suppressed}'
    UNION
    SELECT date, submission_id, name
    FROM (
        SELECT
            date,
            submission_id,
            unnest(map_keys(dimensions)) AS name,
            unnest(map_values(dimensions)) AS value
        FROM submissions
    ) AS slices
    WHERE value = '{suppressed}'
)
SELECT
    verification_tags.date,
    verification_tags.verification_id,
    verification_tags.submission_id,
    verification_tags.name,
    verification_tags.value,
    verification_tags.pseudonym,
    verification_tags.date IN (
        SELECT date
        FROM days
        WHERE is_complete
    ) AS is_complete
FROM lake.verification_tags
SEMI JOIN submissions AS s
    ON
        s.date = verification_tags.date
        AND s.submission_id = verification_tags.submission_id
ANTI JOIN hidden AS h
    ON
        h.date = verification_tags.date
        AND h.submission_id = verification_tags.submission_id
        AND h.name = verification_tags.name
