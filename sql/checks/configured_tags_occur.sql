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
)
SELECT setting, tag
FROM configured
ANTI JOIN tag_names ON name = tag
WHERE EXISTS (FROM tag_names)
