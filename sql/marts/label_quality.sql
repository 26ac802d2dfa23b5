-- How far the labels of each source, and of all sources together, can be trusted. Empty without labels.
--
-- source: What decided; ALL for all sources together.
-- labels: Number of labels.
-- submissions: Submissions with a label, of those that the warehouse has.
-- unknown_submissions: Submissions with a label that the warehouse does not have: mistyped or erased ids.
-- without_verdict: Labelled submissions without a verdict, which no rate counts.
-- genuine: Labelled submissions that are genuine, by the latest decision.
-- fraud: Those that are frauds.
-- unsure: Those about which nothing was decided.
-- conflicts: Those whose latest decisions have the same time but differ; no rate counts them.
-- unsure_share: unsure / submissions.
-- disagreements: Those about which another source decided otherwise; for ALL, those whose sources disagree.
-- coverage: Submissions with a verdict that are labelled genuine or fraud / all submissions with a verdict.
-- drawn: Labelled submissions of a drawn sample, with a weight.
-- first_decided_at: Time of the oldest label that counts (UTC).
-- last_decided_at: Time of the newest label that counts (UTC).
-- days_to_label_p50: Median of the days from the day of the submission to that label.
-- days_to_label_p90: 90% quantile of the same.
WITH verdicts AS (
    SELECT count(*) AS verdicts
    FROM submissions
    WHERE verified IS NOT NULL
),
known AS (
    SELECT
        l.source,
        l.label,
        l.labels,
        l.decided_at,
        l.weight,
        t.submission_id IS NOT NULL AS is_known,
        t.verified IS NOT NULL AS has_verdict,
        coalesce(t.sources_disagree, FALSE) AND (l.source = 'ALL' OR l.label IN ('genuine', 'fraud'))
            AS disagrees,
        date_diff('day', t.date, l.decided_at::DATE) AS days
    FROM label_decisions AS l
    LEFT JOIN submission_labels AS t ON t.submission_id = l.submission_id
)
SELECT
    k.source,
    sum(k.labels)::BIGINT AS labels,
    count(*) FILTER (WHERE k.is_known) AS submissions,
    count(*) FILTER (WHERE NOT k.is_known) AS unknown_submissions,
    count(*) FILTER (WHERE k.is_known AND NOT k.has_verdict) AS without_verdict,
    count(*) FILTER (WHERE k.is_known AND k.label = 'genuine') AS genuine,
    count(*) FILTER (WHERE k.is_known AND k.label = 'fraud') AS fraud,
    count(*) FILTER (WHERE k.is_known AND k.label = 'unsure') AS unsure,
    count(*) FILTER (WHERE k.is_known AND k.label = 'conflict') AS conflicts,
    ratio(count(*) FILTER (WHERE k.is_known AND k.label = 'unsure'), count(*) FILTER (WHERE k.is_known))
        AS unsure_share,
    count(*) FILTER (WHERE k.disagrees) AS disagreements,
    ratio(
        count(*) FILTER (WHERE k.has_verdict AND k.label IN ('genuine', 'fraud')), any_value(v.verdicts)
    ) AS coverage,
    count(*) FILTER (WHERE k.is_known AND k.weight IS NOT NULL) AS drawn,
    min(k.decided_at) AS first_decided_at,
    max(k.decided_at) AS last_decided_at,
    quantile_cont(k.days, 0.5) AS days_to_label_p50,
    quantile_cont(k.days, 0.9) AS days_to_label_p90
FROM known AS k
CROSS JOIN verdicts AS v
GROUP BY k.source
ORDER BY k.source
