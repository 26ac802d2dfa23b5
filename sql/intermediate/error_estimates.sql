-- How often the verdict and each check are wrong, as decided and by threshold, over all submissions and by
-- value of each dimension. Not published: `error_rates` and `error_rates_by_dimension` are its rows.
-- The intervals are those of Agresti and Coull. Of a drawn sample, they are those of as many results without
-- weights as would have the variance of the weighted rate. An error that nobody drew could have the largest
-- weight of all. So for the upper bound, the variance is that of the rate with one more error of this weight,
-- for the lower bound with one more correct result. It is linearised within the strata, without a finite
-- population correction.
--
-- dimension: Name of the tag, or `model_version`; NULL for all submissions.
-- value: Its value; NULL for all submissions.
-- check_group: See error_rates; and so for all that follow.
-- check_type: See error_rates.
-- threshold: See error_rates; NULL by dimension.
-- genuine: See error_rates. By dimension, NULL if there are none, or if they are hidden.
-- false_rejects: See error_rates.
-- frr: See error_rates.
-- frr_low: See error_rates.
-- frr_high: See error_rates.
-- fraud: See error_rates. By dimension, NULL if there are none, or if they are hidden.
-- false_accepts: See error_rates.
-- far: See error_rates.
-- far_low: See error_rates.
-- far_high: See error_rates.
-- presentation_attacks: See error_rates. By dimension, NULL if there are none, or if they are hidden.
-- attacks_accepted: See error_rates.
-- apcer: See error_rates.
-- apcer_low: See error_rates.
-- apcer_high: See error_rates.
-- weighted: See error_rates.
-- low_n: See error_rates.
WITH strata AS (
    SELECT
        weight IS NOT NULL AS weighted,
        coalesce(stratum, '') AS stratum,
        count(*)::DOUBLE AS size,
        coalesce(max(max(weight)) OVER (), 1) AS largest
    FROM submission_labels
    GROUP BY ALL
),
slices AS (
    SELECT
        NULL::VARCHAR AS dimension, NULL::VARCHAR AS value, weighted, check_group, check_type, stratum, kind,
        weight, accepted
    FROM labelled_slices
    UNION ALL
    SELECT
        unnest(map_keys(dimensions)) AS dimension, unnest(map_values(dimensions)) AS value, weighted,
        check_group, check_type, stratum, kind, weight, accepted
    FROM labelled_slices
),
reached AS (
    SELECT
        weighted, check_group, check_type, stratum, kind, step, count(*) AS results, sum(weight) AS weight,
        sum(weight ** 2) AS squares
    FROM labelled_slices
    WHERE step IS NOT NULL
    GROUP BY weighted, check_group, check_type, stratum, kind, step
),
steps AS (
    SELECT range::INTEGER AS step FROM range(101)
),
cells AS (
    SELECT
        dimension,
        value,
        check_group,
        check_type,
        NULL::INTEGER AS step,
        weighted,
        stratum,
        kind,
        count(*) AS results,
        count(*) FILTER (WHERE accepted = (kind <> 'genuine')) AS errors,
        sum(weight) AS weight,
        coalesce(sum(weight) FILTER (WHERE accepted = (kind <> 'genuine')), 0) AS error_weight,
        sum(weight ** 2) AS squares,
        coalesce(sum(weight ** 2) FILTER (WHERE accepted = (kind <> 'genuine')), 0) AS error_squares
    FROM slices
    WHERE accepted IS NOT NULL AND (dimension IS NULL OR value IS NOT NULL)
    GROUP BY dimension, value, check_group, check_type, weighted, stratum, kind
    UNION ALL
    SELECT
        NULL AS dimension,
        NULL AS value,
        r.check_group,
        r.check_type,
        t.step,
        r.weighted,
        r.stratum,
        r.kind,
        sum(r.results) AS results,
        coalesce(sum(r.results) FILTER (WHERE (r.step >= t.step) = (r.kind <> 'genuine')), 0) AS errors,
        sum(r.weight) AS weight,
        coalesce(sum(r.weight) FILTER (WHERE (r.step >= t.step) = (r.kind <> 'genuine')), 0) AS error_weight,
        sum(r.squares) AS squares,
        coalesce(sum(r.squares) FILTER (WHERE (r.step >= t.step) = (r.kind <> 'genuine')), 0)
            AS error_squares
    FROM reached AS r
    CROSS JOIN steps AS t
    GROUP BY r.check_group, r.check_type, t.step, r.weighted, r.stratum, r.kind
),
spread AS (
    -- A stratum with a single submission has no mean of its own: it is taken about the mean of all, 0.
    SELECT
        c.*,
        s.largest,
        CASE WHEN s.size > 1 THEN s.size / (s.size - 1) ELSE 1 END AS factor,
        CASE WHEN s.size > 1 THEN 1 / s.size ELSE 0 END AS centred
    FROM cells AS c
    JOIN strata AS s ON s.weighted = c.weighted AND s.stratum = c.stratum
),
sums AS (
    -- The variance of the sum of (error - rate) * weight is a - 2 * rate * b + rate ** 2 * c.
    SELECT
        dimension,
        value,
        check_group,
        check_type,
        step,
        weighted,
        kind,
        sum(results)::BIGINT AS results,
        sum(errors)::BIGINT AS errors,
        sum(weight) AS weight,
        sum(error_weight) AS error_weight,
        CASE WHEN weighted THEN any_value(largest) ELSE 1 END AS largest,
        sum(factor * (error_squares - centred * error_weight ** 2)) AS a,
        sum(factor * (error_squares - centred * error_weight * weight)) AS b,
        sum(factor * (squares - centred * weight ** 2)) AS c
    FROM spread
    GROUP BY dimension, value, check_group, check_type, step, weighted, kind
),
rates AS (
    SELECT
        *,
        error_weight / weight AS rate,
        error_weight / (weight + largest) AS low_rate,
        (error_weight + largest) / (weight + largest) AS high_rate
    FROM sums
),
variances AS (
    SELECT
        *,
        (greatest(a - 2 * low_rate * b + low_rate ** 2 * c, 0) + (largest * low_rate) ** 2)
        / (weight + largest) ** 2 AS variance_low,
        (greatest(a - 2 * high_rate * b + high_rate ** 2 * c, 0) + (largest * (1 - high_rate)) ** 2)
        / (weight + largest) ** 2 AS variance_high
    FROM rates
),
equivalents AS (
    -- Results without weights, with the additional one. Without any error, or any correct result, each has
    -- the largest weight.
    SELECT
        *,
        CASE
            WHEN NOT weighted THEN results + 1
            WHEN errors = results THEN weight / largest + 1
            ELSE low_rate * (1 - low_rate) / nullif(variance_low, 0)
        END AS low_results,
        CASE
            WHEN NOT weighted THEN results + 1
            WHEN errors = 0 THEN weight / largest + 1
            ELSE high_rate * (1 - high_rate) / nullif(variance_high, 0)
        END AS high_results
    FROM variances
),
estimates AS (
    SELECT
        *,
        CASE
            WHEN errors = 0 THEN 0
            WHEN errors = results THEN agresti_coull_low(low_results - 1, low_results - 1)
            ELSE agresti_coull_low(low_rate * low_results, low_results - 1)
        END AS rate_low,
        CASE
            WHEN errors = results THEN 1
            WHEN errors = 0 THEN agresti_coull_high(0, high_results - 1)
            ELSE agresti_coull_high(high_rate * high_results - 1, high_results - 1)
        END AS rate_high
    FROM equivalents
)
SELECT
    dimension,
    value,
    check_group,
    check_type,
    step / 100 AS threshold,
    coalesce(any_value(results) FILTER (WHERE kind = 'genuine'), CASE WHEN dimension IS NULL THEN 0 END)
        AS genuine,
    coalesce(any_value(errors) FILTER (WHERE kind = 'genuine'), CASE WHEN dimension IS NULL THEN 0 END)
        AS false_rejects,
    any_value(rate) FILTER (WHERE kind = 'genuine') AS frr,
    any_value(rate_low) FILTER (WHERE kind = 'genuine') AS frr_low,
    any_value(rate_high) FILTER (WHERE kind = 'genuine') AS frr_high,
    coalesce(any_value(results) FILTER (WHERE kind = 'fraud'), CASE WHEN dimension IS NULL THEN 0 END)
        AS fraud,
    coalesce(any_value(errors) FILTER (WHERE kind = 'fraud'), CASE WHEN dimension IS NULL THEN 0 END)
        AS false_accepts,
    any_value(rate) FILTER (WHERE kind = 'fraud') AS far,
    any_value(rate_low) FILTER (WHERE kind = 'fraud') AS far_low,
    any_value(rate_high) FILTER (WHERE kind = 'fraud') AS far_high,
    coalesce(any_value(results) FILTER (WHERE kind = 'presentation'), CASE WHEN dimension IS NULL THEN 0 END)
        AS presentation_attacks,
    coalesce(any_value(errors) FILTER (WHERE kind = 'presentation'), CASE WHEN dimension IS NULL THEN 0 END)
        AS attacks_accepted,
    any_value(rate) FILTER (WHERE kind = 'presentation') AS apcer,
    any_value(rate_low) FILTER (WHERE kind = 'presentation') AS apcer_low,
    any_value(rate_high) FILTER (WHERE kind = 'presentation') AS apcer_high,
    weighted,
    is_low_n(least(coalesce(genuine, 0), coalesce(fraud, 0))) AS low_n
FROM estimates
GROUP BY dimension, value, check_group, check_type, step, weighted
