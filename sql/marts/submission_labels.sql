-- The ground truth: the label that counts for each submission. That is the latest decision, whatever its
-- source; `unsure` only if nothing was decided. If `KYC_MIN_CELL` is above 1, only the restricted file has
-- this table.
--
-- date: Day of the manifest, the daily partition.
-- submission_id: Submission id, unique forever.
-- label: genuine, fraud, unsure, or `conflict` if the latest decisions have the same time but differ.
-- attack: For a fraud: presentation, document or other, the latest that is known.
-- decided_at: Time of that label (UTC).
-- labels: Number of labels.
-- sources: Number of sources of these labels.
-- sources_disagree: Whether the latest decisions of two sources differ.
-- weight: Of a drawn sample: how many submissions this one stands for. NULL: it was not drawn.
-- stratum: Of a drawn sample: the stratum that it was drawn from.
-- verified: DeepXL's decision; NULL without a verdict.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH disagreements AS (
    SELECT submission_id
    FROM label_decisions
    WHERE source <> 'ALL' AND label IN ('genuine', 'fraud')
    GROUP BY submission_id
    HAVING count(DISTINCT label) > 1
)
SELECT
    s.date,
    s.submission_id,
    l.label,
    l.attack,
    l.decided_at,
    l.labels,
    l.sources,
    d.submission_id IS NOT NULL AS sources_disagree,
    l.weight,
    l.stratum,
    s.verified,
    s.is_complete
FROM label_decisions AS l
JOIN submissions AS s ON s.submission_id = l.submission_id
LEFT JOIN disagreements AS d ON d.submission_id = l.submission_id
WHERE l.source = 'ALL'
ORDER BY s.date, s.submission_id
