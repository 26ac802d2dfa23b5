-- Distance of a day's confidences from those of the {baseline_days} days before it, by check type. If the
-- day has fewer than {drift_min_checks} checks, a window of 7 or {baseline_days} days that ends on it takes
-- its place, if that has enough. Act on the distances (psi, ks, js_distance), not on the p-value: in
-- large samples it is near zero even for negligible differences. PSI and the Jensen-Shannon distance use
-- the ten fixed bins [0, 0.1), … [0.9, 1]. KS is exact for a type with at most two million pairs of day and
-- distinct confidence. Beyond that, confidences are rounded to 0.001, and the error is at most the share of
-- checks within one such step.
--
-- date: Day of the manifest, the daily partition.
-- check_group: Key under `modelResults`: `technicalChecks`, or OTHER (see model_checks).
-- check_type: Type of the check; OTHER if it is unknown, UNKNOWN if the response has none.
-- checks: Checks with a confidence on the day or in the window.
-- baseline_checks: Checks with a confidence in the {baseline_days} days before the day or the window.
-- psi: Population stability index, with shares floored at 0.0001; NULL if a side is empty.
-- psi_noise_floor: What the PSI exceeds in about one of a hundred samples without drift: the 99% quantile of
--   a gamma distribution with the mean, variance and skewness that chance alone gives it. Simulated for 16
--   shapes and 200 to 140,000 checks on each side: the PSI exceeded it in 0.5 to 1.6% of the samples, and in
--   fewer where only a handful of checks is outside one bin.
-- ks: Kolmogorov-Smirnov statistic: the largest distance between the two distribution functions.
-- ks_p_value: Two-sided asymptotic p-value of ks (Kolmogorov's series): within 0.05 of the exact p-value
--   for 200 checks or more on each side, within 0.2 for fewer. NULL for rounded confidences.
-- js_distance: Jensen-Shannon distance: square root of the divergence in bits, 0 to 1.
-- ks_rounding: Rounding of the confidences for ks: 0 (none, exact) or 0.001.
-- level: none (psi < {psi_moderate}, or not above the noise floor), moderate (< {psi_large}) or large;
--   insufficient if a side has fewer than {drift_min_checks} checks.
-- window_days: Length of the window, which ends on this day: 1, 7 or {baseline_days} days. Longer windows of
--   neighbouring days overlap, so one drift shows on several days.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH resolution AS (
    -- Exact up to a size that the sliding window handles in seconds.
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
daily AS (
    SELECT date, check_group, check_type, sum(checks) AS checks
    FROM confidence_counts
    GROUP BY date, check_group, check_type
),
sizes AS (
    SELECT
        *,
        sum(checks) OVER (this RANGE BETWEEN INTERVAL 6 DAYS PRECEDING AND CURRENT ROW) AS checks_week,
        sum(checks) OVER (
            this RANGE BETWEEN to_days({baseline_days} + 6) PRECEDING AND to_days(7) PRECEDING -- noqa: PRS
        ) AS before_week,
        sum(checks) OVER (
            this RANGE BETWEEN to_days({baseline_days} - 1) PRECEDING AND CURRENT ROW -- noqa: PRS
        ) AS checks_long,
        sum(checks) OVER (
            this
            RANGE BETWEEN to_days(2 * {baseline_days} - 1) PRECEDING -- noqa: PRS
            AND to_days({baseline_days}) PRECEDING
        ) AS before_long
    FROM daily
    WINDOW this AS (PARTITION BY check_group, check_type ORDER BY date)
),
present AS (
    SELECT
        date,
        check_group,
        check_type,
        CASE
            WHEN checks >= {drift_min_checks} THEN 1
            WHEN checks_week >= {drift_min_checks} AND before_week >= {drift_min_checks} THEN 7
            WHEN checks_long >= {drift_min_checks} AND before_long >= {drift_min_checks} THEN {baseline_days}
            ELSE 1
        END AS window_days
    FROM sizes
),
grid AS (
    -- Every day of a type with every point of the type, so that one sliding window gives all baselines.
    SELECT d.date, d.window_days, p.check_group, p.check_type, p.point, coalesce(n.checks, 0) AS checks
    FROM (SELECT DISTINCT check_group, check_type, point FROM points) AS p
    JOIN present AS d USING (check_group, check_type)
    LEFT JOIN points AS n USING (date, check_group, check_type, point)
),
with_baseline AS (
    SELECT
        date,
        check_group,
        check_type,
        sum(checks) OVER (
            PARTITION BY check_group, check_type, point
            ORDER BY date
            RANGE BETWEEN to_days(window_days - 1) PRECEDING AND CURRENT ROW -- noqa: PRS
        )::BIGINT AS checks,
        coalesce(
            sum(checks) OVER (
                PARTITION BY check_group, check_type, point
                ORDER BY date
                RANGE BETWEEN to_days(window_days + {baseline_days} - 1) PRECEDING -- noqa: PRS
                AND to_days(window_days) PRECEDING
            ),
            0
        )::BIGINT AS baseline_checks,
        point
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
    SELECT d.date, d.window_days, d.check_group, d.check_type, b.bin, coalesce(c.checks, 0) AS checks
    FROM present AS d
    CROSS JOIN (SELECT range::INTEGER AS bin FROM range(10)) AS b
    LEFT JOIN day_bins AS c USING (date, check_group, check_type, bin)
),
binned AS (
    SELECT
        date,
        check_group,
        check_type,
        bin,
        sum(checks) OVER (
            PARTITION BY check_group, check_type, bin
            ORDER BY date
            RANGE BETWEEN to_days(window_days - 1) PRECEDING AND CURRENT ROW -- noqa: PRS
        ) AS checks,
        coalesce(
            sum(checks) OVER (
                PARTITION BY check_group, check_type, bin
                ORDER BY date
                RANGE BETWEEN to_days(window_days + {baseline_days} - 1) PRECEDING -- noqa: PRS
                AND to_days(window_days) PRECEDING
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
        sum(checks) OVER day AS n,
        sum(baseline_checks) OVER day AS m,
        ratio(checks, n) AS share,
        ratio(baseline_checks, m) AS baseline_share,
        checks + baseline_checks AS pooled,
        ratio(pooled, n + m) AS pooled_share,
        pooled_share * least(n, m) AS expected
    FROM binned
    WINDOW day AS (PARTITION BY date, check_group, check_type)
),
divergences AS (
    SELECT
        date,
        check_group,
        check_type,
        sum(psi_term(baseline_share, share)) AS psi,
        -- Rounding may make the divergence of equal shares slightly negative.
        sqrt(greatest(sum(js_term(baseline_share, share)), 0)) AS js_distance
    FROM shares
    WHERE baseline_share IS NOT NULL
    GROUP BY date, check_group, check_type
),
splits AS (
    -- How the checks of a sparse bin may fall to the two sides: k to the smaller one, by chance.
    SELECT
        date,
        check_group,
        check_type,
        bin,
        pooled_share,
        psi_term((pooled - k) / greatest(n, m), k / least(n, m)) AS term,
        binomial_probability(k, pooled, least(n, m) / (n + m)) AS probability
    FROM shares
    -- Of fewer than {psi_sparse} expected checks, more than 80 are out of reach.
    JOIN (SELECT range AS k FROM range(81)) AS counts ON k <= least(pooled, n, m)
    WHERE m > 0 AND pooled > 0 AND expected < {psi_sparse}
),
bin_noise AS (
    -- Mean, variance and third central moment of each bin's term.
    SELECT
        date,
        check_group,
        check_type,
        pooled_share,
        sum(probability * term) AS mean,
        sum(probability * term ** 2) - mean ** 2 AS variance,
        sum(probability * term ** 3) - 3 * mean * variance - mean ** 3 AS third_moment
    FROM splits
    GROUP BY date, check_group, check_type, bin, pooled_share
    UNION ALL
    -- Those of chi-squared with one degree of freedom, to which the term of a full bin is proportional.
    SELECT
        date,
        check_group,
        check_type,
        pooled_share,
        1 / n + 1 / m AS mean,
        2 * mean ** 2 AS variance,
        8 * mean ** 3 AS third_moment
    FROM shares
    WHERE expected >= {psi_sparse}
),
noise AS (
    -- The shares sum to 1, so one degree of freedom is lost, each bin's part in proportion to its share. The
    -- variance keeps it: where nearly all is in one bin, the floor would be too low without.
    SELECT
        date,
        check_group,
        check_type,
        gamma_p99(
            sum((1 - pooled_share) * mean), sum(variance), sum((1 - pooled_share) * third_moment)
        ) AS psi_noise_floor
    FROM bin_noise
    GROUP BY date, check_group, check_type
)
SELECT
    date,
    check_group,
    check_type,
    d.n AS checks,
    d.m AS baseline_checks,
    v.psi,
    o.psi_noise_floor,
    d.ks,
    CASE WHEN r.ks_rounding = 0 THEN ks_p(d.ks, d.n, d.m) END AS ks_p_value,
    v.js_distance,
    r.ks_rounding,
    CASE
        WHEN least(d.n, d.m) < {drift_min_checks} THEN 'insufficient'
        WHEN v.psi < {psi_moderate} OR v.psi <= o.psi_noise_floor THEN 'none'
        WHEN v.psi < {psi_large} THEN 'moderate'
        ELSE 'large'
    END AS level,
    p.window_days,
    y.is_complete
FROM distances AS d
LEFT JOIN divergences AS v USING (date, check_group, check_type)
LEFT JOIN noise AS o USING (date, check_group, check_type)
JOIN resolution AS r USING (check_group, check_type)
JOIN present AS p USING (date, check_group, check_type)
JOIN days AS y USING (date)
ORDER BY date, check_group, check_type
