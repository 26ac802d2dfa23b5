-- Week-to-week changes of the verified rate, and what remains of them at an equal mix of companies, tags in
-- `KYC_DIMENSIONS` and model versions. If the interval of the adjusted change includes 0, the mix explains
-- the change.
SELECT week, dimension, change, adjusted_change, adjusted_low, adjusted_high, mix_effect, compared_share
FROM mix_adjusted_changes
WHERE check_group = 'verdict' AND is_complete
ORDER BY week DESC, dimension ASC;
