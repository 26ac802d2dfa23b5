-- How often the verdict and each check are wrong, as decided, by value of each dimension: the tags of
-- `KYC_DIMENSIONS`, and the model version. See `error_rates`. Counts and rates are NULL if there are no such
-- submissions, or if they are of fewer than `KYC_MIN_CELL` people: then {suppressed} has them, together with
-- others. The restricted file has all.
--
-- dimension: Name of the tag, or `model_version`.
-- value: Its value in the manifest, or in the response for `model_version`; UNKNOWN without one, {suppressed}
--   for all values with few people, or few labelled ones.
-- check_group: `verdict` for DeepXL's decision; else the key under `modelResults`.
-- check_type: `VERIFIED` for DeepXL's decision; else the type of the check.
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
-- weighted: TRUE: the labels of drawn samples, with their weights: an estimate for all submissions of the
--   sampled days. FALSE: the other labels, each once: it holds for these only. Each label is in one of them.
-- low_n: Fewer than {low_n} genuine or fraudulent results: do not base decisions on this row alone.
SELECT * EXCLUDE (threshold) -- noqa: AM04
FROM error_estimates
WHERE dimension IS NOT NULL
ORDER BY dimension, value, check_group, check_type, weighted
