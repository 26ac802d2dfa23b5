-- The person of each submission that has one. Not published. A response names the person by the pseudonyms
-- of the tags in `KYC_SUBJECT_TAGS`; submissions without a response count for the person whose tags their
-- manifest has, if that person has a response elsewhere.
--
-- date: Day of the manifest, the daily partition.
-- submission_id: Submission id, unique forever.
-- subject: The person.
-- is_from_response: Whether a response names the person.
WITH tagged AS (
    -- 128 bits instead of the pseudonym's 64 digits: sorting and grouping them takes far less memory.
    SELECT
        date,
        submission_id,
        subject_of(
            min(md5_number(pseudonym)) FILTER (WHERE name = getvariable('subject_tag')),
            min(md5_number(pseudonym)) FILTER (WHERE name = getvariable('subject_scope')[1]),
            min(md5_number(pseudonym)) FILTER (WHERE name = getvariable('subject_scope')[2])
        ) AS subject
    FROM lake.verification_tags
    WHERE
        pseudonym IS NOT NULL
        AND (name = getvariable('subject_tag') OR list_contains(getvariable('subject_scope'), name))
    GROUP BY date, submission_id
    HAVING subject IS NOT NULL
),
known AS (
    SELECT s.person, min(t.subject) AS subject
    FROM tagged AS t
    JOIN lake.submissions AS s ON s.date = t.date AND s.submission_id = t.submission_id
    WHERE s.person IS NOT NULL
    GROUP BY s.person
)
SELECT
    s.date,
    s.submission_id,
    coalesce(t.subject, k.subject) AS subject,
    t.subject IS NOT NULL AS is_from_response
FROM lake.submissions AS s
LEFT JOIN tagged AS t ON t.date = s.date AND t.submission_id = s.submission_id
LEFT JOIN known AS k ON k.person = s.person
WHERE coalesce(t.subject, k.subject) IS NOT NULL
