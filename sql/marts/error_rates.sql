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
-- frr_low: Lower bound of its 95% interval: Clopper-Pearson; if `weighted`, its generalisation to weights.
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
    check_group,
    check_type,
    step / 100 AS threshold,
    coalesce(any_value(results) FILTER (WHERE kind = 'genuine'), 0) AS genuine,
    coalesce(any_value(errors) FILTER (WHERE kind = 'genuine'), 0) AS false_rejects,
    any_value(rate) FILTER (WHERE kind = 'genuine') AS frr,
    any_value(rate_low) FILTER (WHERE kind = 'genuine') AS frr_low,
    any_value(rate_high) FILTER (WHERE kind = 'genuine') AS frr_high,
    coalesce(any_value(results) FILTER (WHERE kind = 'fraud'), 0) AS fraud,
    coalesce(any_value(errors) FILTER (WHERE kind = 'fraud'), 0) AS false_accepts,
    any_value(rate) FILTER (WHERE kind = 'fraud') AS far,
    any_value(rate_low) FILTER (WHERE kind = 'fraud') AS far_low,
    any_value(rate_high) FILTER (WHERE kind = 'fraud') AS far_high,
    coalesce(any_value(results) FILTER (WHERE kind = 'presentation'), 0) AS presentation_attacks,
    coalesce(any_value(errors) FILTER (WHERE kind = 'presentation'), 0) AS attacks_accepted,
    any_value(rate) FILTER (WHERE kind = 'presentation') AS apcer,
    any_value(rate_low) FILTER (WHERE kind = 'presentation') AS apcer_low,
    any_value(rate_high) FILTER (WHERE kind = 'presentation') AS apcer_high,
    any_value(labelled) - genuine - fraud AS not_counted,
    weighted,
    is_low_n(least(genuine, fraud)) AS low_n
FROM error_estimates
WHERE dimension IS NULL
GROUP BY check_group, check_type, step, weighted
ORDER BY check_group, check_type, step NULLS FIRST, weighted
