-- Share of verifications decided as verified, by day and company, with its 95% Wilson interval.
--
-- date: Day of the manifest, the daily partition.
-- company_id: Value of the tag `companyId` (the smallest one if it is repeated); UNKNOWN without it.
-- verifications: Completed verifications.
-- verified: Those decided as verified.
-- verified_rate: verified / verifications.
-- verified_rate_low: Lower bound of the 95% Wilson interval (z = {z_95}).
-- verified_rate_high: Upper bound of the same interval.
-- low_n: Fewer than {low_n} verifications: do not base decisions on this row alone.
WITH companies AS (
    SELECT date, verification_id, min(value) AS company_id
    FROM verification_tags
    WHERE name = 'companyId' AND value <> ''
    GROUP BY date, verification_id
),
counts AS (
    SELECT
        v.date,
        coalesce(c.company_id, 'UNKNOWN') AS company_id,
        count(*) AS verifications,
        count(*) FILTER (WHERE v.verified) AS verified
    FROM verifications AS v
    LEFT JOIN companies AS c ON c.date = v.date AND c.verification_id = v.verification_id
    GROUP BY ALL
)
SELECT
    date,
    company_id,
    verifications,
    verified,
    ratio(verified, verifications) AS verified_rate,
    wilson_low(verified, verifications) AS verified_rate_low,
    wilson_high(verified, verifications) AS verified_rate_high,
    is_low_n(verifications) AS low_n
FROM counts
ORDER BY date, company_id
