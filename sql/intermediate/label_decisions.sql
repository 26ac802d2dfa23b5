-- The label that counts for each submission, by source and of all sources together. Not published. It is the
-- latest decision; `unsure` only if nothing was decided.
--
-- submission_id: Submission id, whether or not the submission is known.
-- source: What decided; ALL for all sources together.
-- label: genuine, fraud, unsure, or `conflict` if the latest decisions have the same time but differ.
-- attack: For a fraud: the latest that is known.
-- decided_at: Time of that label (UTC).
-- labels: Number of labels.
-- sources: Number of sources.
-- weight: Of the latest label that has one; NULL if the submission was not drawn.
-- stratum: Of the same label.
WITH statements AS (
    SELECT
        submission_id, source, source AS origin, label, decided_at, attack, weight, stratum,
        weight IS NOT NULL AS drawn
    FROM labels
    UNION ALL
    SELECT
        submission_id, 'ALL' AS source, source AS origin, label, decided_at, attack, weight, stratum,
        weight IS NOT NULL AS drawn
    FROM labels
),
newest AS (
    SELECT submission_id, source, max(decided_at) FILTER (WHERE label <> 'unsure') AS newest_at
    FROM statements
    GROUP BY submission_id, source
)
SELECT
    submission_id,
    source,
    CASE
        WHEN any_value(newest_at) IS NULL THEN 'unsure'
        WHEN count(DISTINCT label) FILTER (WHERE label <> 'unsure' AND decided_at = newest_at) > 1
            THEN 'conflict'
        ELSE any_value(label) FILTER (WHERE label <> 'unsure' AND decided_at = newest_at)
    END AS label,
    CASE
        WHEN NOT bool_or(label = 'genuine' AND decided_at = newest_at)
            THEN first(attack ORDER BY decided_at DESC, attack ASC) FILTER (WHERE attack IS NOT NULL)
    END AS attack,
    coalesce(any_value(newest_at), max(decided_at)) AS decided_at,
    count(*) AS labels,
    count(DISTINCT origin) AS sources,
    first(weight ORDER BY decided_at DESC, weight ASC, stratum ASC) FILTER (WHERE drawn) AS weight,
    first(stratum ORDER BY decided_at DESC, weight ASC, stratum ASC) FILTER (WHERE drawn) AS stratum
FROM statements
JOIN newest USING (submission_id, source)
GROUP BY submission_id, source
