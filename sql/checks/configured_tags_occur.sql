-- Every tag that `KYC_DIMENSIONS` names occurs in a verified submission; so does every tag that
-- `KYC_SUBJECT_TAGS` names, unless it has its default value.
--
-- severity: warning
-- counts: tags
-- shows: setting, tag
-- todo: no verified submission has a tag of this name; correct it in the setting
WITH configured AS (
    SELECT name AS setting, unnest(string_split(value, ',')) AS tag
    FROM build_inputs
    WHERE
        (name = 'KYC_DIMENSIONS' AND value <> '')
        OR (name = 'KYC_SUBJECT_TAGS' AND value <> '{default_subject_tags}')
),
-- A tag whose values are all hidden has no row.
found AS (
    SELECT name AS tag
    FROM verification_tags
    UNION
    SELECT tag
    FROM (
        SELECT unnest(map_keys(dimensions)) AS tag, unnest(map_values(dimensions)) AS value
        FROM submissions
    ) AS slices
    WHERE value = '{suppressed}'
    UNION
    SELECT unnest(['{company_tag}', '{company_name_tag}'])
    FROM submissions
    WHERE company_id = '{suppressed}'
)
SELECT setting, tag
FROM configured
ANTI JOIN found USING (tag)
WHERE EXISTS (FROM verification_tags)
