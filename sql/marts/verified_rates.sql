-- Share of verifications that DeepXL decided as verified, by day, with its 95% Wilson interval.
--
-- date: Day of the manifest, the daily partition.
-- verifications: Completed verifications.
-- verified: Those decided as verified.
-- verified_rate: verified / verifications.
-- verified_rate_low: Lower bound of the 95% Wilson interval (z = {z_95}).
-- verified_rate_high: Upper bound of the same interval.
-- low_n: Fewer than {low_n} verifications: do not base decisions on this row alone.
WITH counts AS (
    SELECT date, count(*) AS verifications, count(*) FILTER (WHERE verified) AS verified
    FROM verifications
    GROUP BY date
)
SELECT
    date,
    verifications,
    verified,
    ratio(verified, verifications) AS verified_rate,
    wilson_low(verified, verifications) AS verified_rate_low,
    wilson_high(verified, verifications) AS verified_rate_high,
    is_low_n(verifications) AS low_n
FROM counts
ORDER BY date
