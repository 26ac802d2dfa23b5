-- What DeepXL said of each submission that is genuine or a fraud: its verdict and each of its checks. Error
-- rates are counted from these rows. If `KYC_MIN_CELL` is above 1, only the restricted file has this table.
--
-- date: Day of the manifest, the daily partition.
-- submission_id: Submission id, unique forever.
-- check_group: `verdict` for DeepXL's decision; else the key under `modelResults`.
-- check_type: `VERIFIED` for DeepXL's decision; else the type of the check.
-- label: genuine or fraud.
-- attack: For a fraud: presentation, document or other; NULL if it is not known.
-- accepted: Whether the verdict was `verified`, or a check of this type passed and none failed; NULL if none
--   passed or failed.
-- confidence: The lowest confidence of the checks of this type; NULL without one, and for the verdict.
-- weight: Of a drawn sample: how many submissions this one stands for. NULL: it was not drawn.
-- stratum: Of a drawn sample: the stratum that it was drawn from.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH labelled AS (
    SELECT date, submission_id, label, attack, weight, stratum, verified, is_complete
    FROM submission_labels
    WHERE label IN ('genuine', 'fraud')
),
checks AS (
    SELECT
        c.date,
        c.submission_id,
        c.check_group,
        c.check_type,
        CASE
            WHEN bool_or(c.normalized_status = 'FAIL') THEN FALSE
            WHEN bool_or(c.normalized_status = 'PASS') THEN TRUE
        END AS accepted,
        min(c.confidence) AS confidence
    FROM model_checks AS c
    JOIN labelled AS l ON l.date = c.date AND l.submission_id = c.submission_id
    GROUP BY c.date, c.submission_id, c.check_group, c.check_type
)
SELECT
    date,
    submission_id,
    'verdict' AS check_group,
    'VERIFIED' AS check_type,
    label,
    attack,
    verified AS accepted,
    NULL::DOUBLE AS confidence,
    weight,
    stratum,
    is_complete
FROM labelled
WHERE verified IS NOT NULL
UNION ALL
SELECT
    c.date,
    c.submission_id,
    c.check_group,
    c.check_type,
    l.label,
    l.attack,
    c.accepted,
    c.confidence,
    l.weight,
    l.stratum,
    l.is_complete
FROM checks AS c
JOIN labelled AS l ON l.date = c.date AND l.submission_id = c.submission_id
ORDER BY date, submission_id, check_group, check_type
