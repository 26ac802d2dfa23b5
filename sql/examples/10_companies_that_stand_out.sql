-- Companies whose verified rate over all days is significantly below that of all others together.
WITH totals AS (
    SELECT company_id, sum(verified) AS verified, sum(verifications) AS verifications
    FROM verified_rates_by_company
    GROUP BY company_id
),
compared AS (
    SELECT
        company_id,
        verified,
        verifications,
        sum(verified) OVER () - verified AS others_verified,
        sum(verifications) OVER () - verifications AS others
    FROM totals
)
SELECT
    company_id,
    verifications,
    ratio(verified, verifications) AS verified_rate,
    ratio(others_verified, others) AS rate_of_others
FROM compared
WHERE NOT is_low_n(verifications) AND newcombe_high(verified, verifications, others_verified, others) < 0
ORDER BY verified_rate;
