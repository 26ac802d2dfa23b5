-- The labelled results with the values of their dimensions, of which error rates are made. Not published.
-- Small cells are hidden: see :mod:`kyc_pipeline.analyze.label_cells`.
--
-- submission_id: Submission id, unique forever.
-- person: The person; NULL if no response names one.
-- check_group: See labelled_results.
-- check_type: See labelled_results.
-- kind: genuine, fraud, or presentation: the frauds that are presentation attacks, which have two rows.
-- weighted: Whether the label is of a drawn sample, with a weight.
-- stratum: The stratum that it was drawn from; empty without one.
-- weight: How many submissions it stands for; 1 if it was not drawn.
-- accepted: See labelled_results.
-- step: The confidence in hundredths, rounded down.
-- dimensions: Dimension → value, as in submissions; a NULL value is shown nowhere.
SELECT
    r.submission_id,
    p.person,
    r.check_group,
    r.check_type,
    unnest(
        CASE
            WHEN r.label = 'genuine' THEN ['genuine']
            WHEN r.attack = 'presentation' THEN ['fraud', 'presentation']
            ELSE ['fraud']
        END
    ) AS kind,
    r.weight IS NOT NULL AS weighted,
    coalesce(r.stratum, '') AS stratum,
    coalesce(r.weight, 1) AS weight,
    r.accepted,
    hundredths(r.confidence) AS step,
    s.dimensions
FROM labelled_results AS r
JOIN submissions AS s ON s.date = r.date AND s.submission_id = r.submission_id
LEFT JOIN labelled_people AS p ON p.submission_id = r.submission_id
