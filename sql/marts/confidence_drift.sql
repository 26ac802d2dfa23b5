-- How far a day's confidences are from those of the {baseline_days} days before, by check type. Act on the
-- distances (psi, ks, js_distance), not on the p-value: with volume it goes to zero for differences that mean
-- nothing.
-- PSI and the Jensen-Shannon distance use the ten fixed bins [0, 0.1), … [0.9, 1]. KS is exact while days
-- times different confidences of a type stay within two million; beyond that it is of the confidences rounded
-- to 0.001, which is off by at most the share of the checks within such a step.
--
-- date: Day of the manifest, the daily partition.
-- check_group: Key under `modelResults`, such as `technicalChecks`.
-- check_type: Which check; UNKNOWN where the answer names none.
-- checks: Checks of the day that have a confidence.
-- baseline_checks: Checks of the {baseline_days} days before that have one.
-- psi: Population stability index, shares of zero floored at 0.0001; NULL where a side is empty.
-- psi_noise_floor: PSI to expect without any drift: 9 * (1/checks + 1/baseline_checks).
-- ks: Kolmogorov-Smirnov statistic, the largest distance of the two distribution functions.
-- ks_p_value: Its two-sided asymptotic p-value (Kolmogorov's series): within 0.01 of the exact one from 200
--   checks on both sides, within 0.06 at five.
-- js_distance: Jensen-Shannon distance: square root of the divergence in bits, 0 to 1.
-- ks_rounding: To what confidences are rounded for ks: 0 where it is exact, else 0.001.
-- level: none (psi < {psi_moderate}), moderate (< {psi_large}) or large; insufficient below
--   {drift_min_checks} checks on a side.
WITH resolution AS (
    -- Exact as long as days times different confidences stay a size that a sliding window does in seconds.
    SELECT
        check_group,
        check_type,
        CASE WHEN count(DISTINCT date) * count(DISTINCT confidence) <= 2000000 THEN 0 ELSE 0.001 END::DOUBLE
            AS ks_rounding
    FROM confidence_counts
    GROUP BY check_group, check_type
),
points AS (
    SELECT
        date,
        check_group,
        check_type,
        CASE WHEN ks_rounding = 0 THEN confidence ELSE round(confidence, 3) END AS point,
        sum(checks)::BIGINT AS checks
    FROM confidence_counts
    JOIN resolution USING (check_group, check_type)
    GROUP BY ALL
),
days AS (
    SELECT DISTINCT date, check_group, check_type FROM confidence_counts
),
grid AS (
    -- Every day of a type with every point of it, so that one sliding window gives the baseline of each.
    SELECT d.date, p.check_group, p.check_type, p.point, coalesce(n.checks, 0) AS checks
    FROM (SELECT DISTINCT check_group, check_type, point FROM points) AS p
    JOIN days AS d USING (check_group, check_type)
    LEFT JOIN points AS n USING (date, check_group, check_type, point)
),
with_baseline AS (
    SELECT
        *,
        coalesce(
            sum(checks) OVER (
                PARTITION BY check_group, check_type, point
                ORDER BY date
                RANGE BETWEEN INTERVAL {baseline_days} DAYS PRECEDING AND INTERVAL 1 DAY PRECEDING
            ),
            0
        )::BIGINT AS baseline_checks
    FROM grid
),
occupied AS (
    SELECT *
    FROM with_baseline
    WHERE checks > 0 OR baseline_checks > 0
),
cumulated AS (
    SELECT
        date,
        check_group,
        check_type,
        sum(checks) OVER upwards AS below,
        sum(baseline_checks) OVER upwards AS baseline_below
    FROM occupied
    WINDOW upwards AS (
        PARTITION BY date, check_group, check_type
        ORDER BY point ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),
totals AS (
    SELECT date, check_group, check_type, sum(checks)::BIGINT AS n, sum(baseline_checks)::BIGINT AS m
    FROM occupied
    GROUP BY date, check_group, check_type
),
distances AS (
    SELECT date, check_group, check_type, n, m, max(abs(ratio(below, n) - ratio(baseline_below, m))) AS ks
    FROM cumulated
    JOIN totals USING (date, check_group, check_type)
    GROUP BY ALL
),
day_bins AS (
    SELECT
        date,
        check_group,
        check_type,
        least(hundredths(confidence), 99) // 10 AS bin,
        sum(checks)::BIGINT AS checks
    FROM confidence_counts
    GROUP BY ALL
),
bin_grid AS (
    SELECT d.date, d.check_group, d.check_type, b.bin, coalesce(c.checks, 0) AS checks
    FROM days AS d
    CROSS JOIN (SELECT range::INTEGER AS bin FROM range(10)) AS b
    LEFT JOIN day_bins AS c USING (date, check_group, check_type, bin)
),
binned AS (
    SELECT
        date,
        check_group,
        check_type,
        bin,
        checks,
        coalesce(
            sum(checks) OVER (
                PARTITION BY check_group, check_type, bin
                ORDER BY date
                RANGE BETWEEN INTERVAL {baseline_days} DAYS PRECEDING AND INTERVAL 1 DAY PRECEDING
            ),
            0
        ) AS baseline_checks
    FROM bin_grid
),
shares AS (
    SELECT
        date,
        check_group,
        check_type,
        bin,
        ratio(checks, sum(checks) OVER day) AS share,
        ratio(baseline_checks, sum(baseline_checks) OVER day) AS baseline_share
    FROM binned
    WINDOW day AS (PARTITION BY date, check_group, check_type)
),
divergences AS (
    SELECT
        date,
        check_group,
        check_type,
        sum(psi_term(baseline_share, share)) AS psi,
        -- Rounding may take the divergence of equal shares a hair below zero.
        sqrt(greatest(sum(js_term(baseline_share, share)), 0)) AS js_distance
    FROM shares
    WHERE baseline_share IS NOT NULL
    GROUP BY date, check_group, check_type
)
SELECT
    date,
    check_group,
    check_type,
    d.n AS checks,
    d.m AS baseline_checks,
    v.psi,
    9 * (1 / nullif(d.n, 0) + 1 / nullif(d.m, 0)) AS psi_noise_floor,
    d.ks,
    ks_p(d.ks, d.n, d.m) AS ks_p_value,
    v.js_distance,
    r.ks_rounding,
    CASE
        WHEN least(d.n, d.m) < {drift_min_checks} THEN 'insufficient'
        WHEN v.psi < {psi_moderate} THEN 'none'
        WHEN v.psi < {psi_large} THEN 'moderate'
        ELSE 'large'
    END AS level
FROM distances AS d
LEFT JOIN divergences AS v USING (date, check_group, check_type)
JOIN resolution AS r USING (check_group, check_type)
ORDER BY date, check_group, check_type
