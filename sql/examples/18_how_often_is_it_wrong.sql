-- How often verdict and checks are wrong, as decided, where the truth is known: FRR of genuine submissions,
-- FAR of frauds. Weighted rows, of a drawn sample, speak for all submissions.
SELECT
    check_group,
    check_type,
    weighted,
    genuine,
    frr,
    frr_low,
    frr_high,
    fraud,
    far,
    far_low,
    far_high,
    low_n
FROM error_rates
WHERE threshold IS NULL
ORDER BY check_group = 'verdict' DESC, check_group ASC, check_type ASC, weighted DESC;
