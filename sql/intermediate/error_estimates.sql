-- Error rates of each kind of submission, with their 95% intervals, as decided and by threshold, over all
-- submissions and by value of each dimension. Not published.
-- Of labels without a weight, it is the Clopper-Pearson interval: with one more error, the upper bound is
-- a quantile of the beta distribution with the mean and variance of the rate; with one more correct result,
-- the lower one. Of a drawn sample it is the same, with weights: the additional result has the largest weight
-- of all, and the variance of the ratio is linearised within the strata, without a finite population
-- correction.
--
-- dimension: Name of the tag, or `model_version`; NULL for all submissions.
-- value: Its value; NULL for all submissions.
-- check_group: `verdict` for DeepXL's decision; else the key under `modelResults`.
-- check_type: `VERIFIED` for DeepXL's decision; else the type of the check.
-- step: The threshold in hundredths; NULL for the results as decided.
-- weighted: Whether these are labels of drawn samples, with weights.
-- kind: genuine, fraud, or presentation: the frauds that are presentation attacks.
-- results: Number of results.
-- errors: Those that are errors: genuine ones that were rejected, frauds that were accepted.
-- rate: Their share, weighted if `weighted`.
-- rate_low: Lower bound of the 95% interval: see :mod:`kyc_pipeline.analyze.intervals`.
-- size_low: Sum of the parameters of the beta distribution that it is a quantile of.
-- rate_high: Upper bound of the same interval.
-- size_high: As size_low, for the upper bound.
-- labelled: Genuine and fraudulent submissions with this value, with or without such a result.
WITH labelled AS (
    SELECT l.date, l.submission_id, s.dimensions, l.weight IS NOT NULL AS weighted
    FROM submission_labels AS l
    JOIN submissions AS s ON s.date = l.date AND s.submission_id = l.submission_id
    WHERE l.label IN ('genuine', 'fraud')
),
labelled_slices AS (
    SELECT NULL::VARCHAR AS dimension, NULL::VARCHAR AS value, weighted
    FROM labelled
    UNION ALL
    SELECT unnest(map_keys(dimensions)) AS dimension, unnest(map_values(dimensions)) AS value, weighted
    FROM labelled
),
totals AS (
    SELECT dimension, value, weighted, count(*) AS labelled
    FROM labelled_slices
    GROUP BY dimension, value, weighted
),
strata AS (
    SELECT
        weight IS NOT NULL AS weighted,
        coalesce(stratum, '') AS stratum,
        count(*)::DOUBLE AS size,
        coalesce(max(max(weight)) OVER (), 1) AS largest
    FROM submission_labels
    GROUP BY ALL
),
results AS (
    SELECT
        l.dimensions,
        l.weighted,
        r.check_group,
        r.check_type,
        coalesce(r.stratum, '') AS stratum,
        coalesce(r.weight, 1) AS weight,
        r.accepted,
        hundredths(r.confidence) AS step,
        unnest(
            CASE
                WHEN r.label = 'genuine' THEN ['genuine']
                WHEN r.attack = 'presentation' THEN ['fraud', 'presentation']
                ELSE ['fraud']
            END
        ) AS kind
    FROM labelled_results AS r
    JOIN labelled AS l ON l.date = r.date AND l.submission_id = r.submission_id
),
slices AS (
    SELECT
        NULL::VARCHAR AS dimension, NULL::VARCHAR AS value, weighted, check_group, check_type, stratum, kind,
        weight, accepted
    FROM results
    UNION ALL
    SELECT
        unnest(map_keys(dimensions)) AS dimension, unnest(map_values(dimensions)) AS value, weighted,
        check_group, check_type, stratum, kind, weight, accepted
    FROM results
),
reached AS (
    SELECT
        weighted, check_group, check_type, stratum, kind, step, count(*) AS results, sum(weight) AS weight,
        sum(weight ** 2) AS squares
    FROM results
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
    WHERE accepted IS NOT NULL
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
shapes AS (
    -- The parameters of a beta distribution add up to this size: of so many results without weights, the rate
    -- would have this variance.
    SELECT
        *,
        CASE WHEN weighted THEN low_rate * (1 - low_rate) / variance_low ELSE results + 1 END AS size_low,
        CASE WHEN weighted THEN high_rate * (1 - high_rate) / variance_high ELSE results + 1 END AS size_high
    FROM variances
)
SELECT
    e.dimension,
    e.value,
    e.check_group,
    e.check_type,
    e.step,
    e.weighted,
    e.kind,
    e.results,
    e.errors,
    e.rate,
    CASE WHEN e.errors = 0 THEN 0 ELSE e.low_rate END AS rate_low,
    e.size_low,
    CASE WHEN e.errors = e.results THEN 1 ELSE e.high_rate END AS rate_high,
    e.size_high,
    t.labelled
FROM shapes AS e
JOIN totals AS t ON
    t.dimension IS NOT DISTINCT FROM e.dimension
    AND t.value IS NOT DISTINCT FROM e.value
    AND t.weighted = e.weighted
