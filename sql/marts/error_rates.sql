-- How often the verdict and each check are wrong about the submissions whose truth is known (see
-- `submission_labels`), as decided and for each threshold. Empty without labels.
--
-- check_group: `verdict` for DeepXL's decision; else the key under `modelResults`.
-- check_type: `VERIFIED` for DeepXL's decision; else the type of the check.
-- threshold: NULL: as decided, where a check accepts if one of its type passed and none failed. 0.00 to 1.00
--   by 0.01: if a check accepted exactly when its lowest confidence was at or above the threshold.
-- genuine: Genuine submissions with such a result.
-- false_rejects: Those that were rejected.
-- frr: false_rejects / genuine, weighted if `weighted`: the false rejection rate; in terms of attacks, BPCER.
-- frr_low: Lower bound of its 95% interval: Agresti-Coull; if `weighted`, its generalisation to weights.
-- frr_high: Upper bound of the same interval.
-- fraud: Frauds with such a result.
-- false_accepts: Those that were accepted.
-- far: false_accepts / fraud, weighted if `weighted`: the false acceptance rate.
-- far_low: Lower bound of its 95% interval.
-- far_high: Upper bound of the same interval.
-- presentation_attacks: The frauds that are presentation attacks.
-- attacks_accepted: Those that were accepted.
-- apcer: attacks_accepted / presentation_attacks, weighted if `weighted`.
-- apcer_low: Lower bound of its 95% interval.
-- apcer_high: Upper bound of the same interval.
-- not_counted: Genuine and fraudulent submissions without such a result; unsure ones count nowhere.
-- weighted: TRUE: the labels of drawn samples, with their weights: an estimate for all submissions of the
--   sampled days. FALSE: the other labels, each once: it holds for these only. Each label is in one of them.
-- low_n: Fewer than {low_n} genuine or fraudulent results: do not base decisions on this row alone.
SELECT
    e.* EXCLUDE (dimension, value, weighted, low_n), -- noqa: AM04
    t.labelled - e.genuine - e.fraud AS not_counted,
    e.weighted,
    e.low_n
FROM error_estimates AS e
JOIN (
    SELECT weight IS NOT NULL AS weighted, count(*) AS labelled
    FROM submission_labels
    WHERE label IN ('genuine', 'fraud')
    GROUP BY ALL
) AS t ON t.weighted = e.weighted
WHERE e.dimension IS NULL
ORDER BY e.check_group, e.check_type, e.threshold NULLS FIRST, e.weighted
