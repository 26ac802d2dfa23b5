-- Companies whose verified rate over the complete days is below that of all others together. However many
-- companies there are, at most one in twenty of those listed is expected to be there by chance
-- (Benjamini-Hochberg). `p_at_most` is an upper bound of the normal tail: DuckDB has no normal distribution.
-- Companies with few people on a day are SUPPRESSED: `kyc-pipeline query --exact` lists them, too.
WITH totals AS (
    SELECT company_id, sum(verified) AS verified, sum(verifications) AS verifications
    FROM verified_rates_by_company
    WHERE is_complete
    GROUP BY company_id
),
compared AS (
    SELECT
        company_id,
        verifications,
        ratio(verified, verifications) AS verified_rate,
        sum(verifications) OVER () - verifications AS others,
        ratio(sum(verified) OVER () - verified, others) AS rate_of_others,
        ratio(sum(verified) OVER (), sum(verifications) OVER ()) AS overall
    FROM totals
),
tested AS (
    SELECT
        *,
        (rate_of_others - verified_rate)
        / sqrt(overall * (1 - overall) * (1 / verifications + 1 / others)) AS z,
        CASE WHEN z > 0 THEN exp(-(z ** 2) / 2) / 2 ELSE 1 END AS p_at_most
    FROM compared
    WHERE
        company_id <> 'SUPPRESSED'
        AND NOT is_low_n(verifications)
        AND others > 0
        AND overall > 0
        AND overall < 1
),
ranked AS (
    SELECT *, p_at_most * count(*) OVER () / row_number() OVER (ORDER BY p_at_most) AS at_its_rank
    FROM tested
),
cutoff AS (
    SELECT max(p_at_most) AS highest
    FROM ranked
    WHERE at_its_rank <= 0.05
)
SELECT company_id, verifications, verified_rate, rate_of_others, z, p_at_most
FROM ranked
JOIN cutoff ON p_at_most <= highest
ORDER BY p_at_most, company_id;
