-- Simulated pass rate of each check type over all days, if a check passed exactly when its confidence was
-- at or above a threshold. It does not predict the vendor's decisions. Trust flips_to_pass only if
-- orientation_verified is true.
--
-- check_group: Key under `modelResults`: `technicalChecks`, or OTHER (see model_checks).
-- check_type: Type of the check; OTHER if it is unknown, UNKNOWN if the response has none.
-- threshold: 0.00 to 1.00 by 0.01; the rule is confidence >= threshold.
-- scored: Checks with a confidence.
-- at_or_above: Those with a confidence at or above the threshold.
-- rate: at_or_above / scored.
-- rate_null_as_fail: at_or_above / all checks of the type: a check without a confidence counts as failed.
-- flips_to_fail: Checks with status PASS and a confidence below the threshold.
-- flips_to_pass: Checks with status FAIL and a confidence at or above it.
-- orientation_verified: Whether auc_low is above 0.5: beyond chance, a higher confidence means a better
--   check. False if no check passed or none failed.
-- auc: Probability that a passed check has a higher confidence than a failed one; ties count half.
-- auc_low: Lower bound of its 95% interval (Newcombe's method 5), rounded down to 0.001.
WITH scores AS (
    SELECT
        check_group,
        check_type,
        confidence,
        count(*) FILTER (WHERE normalized_status = 'PASS') AS passed,
        count(*) FILTER (WHERE normalized_status = 'FAIL') AS failed,
        count(*) AS checks
    FROM model_checks
    GROUP BY check_group, check_type, confidence
),
ranked AS (
    SELECT
        check_group,
        check_type,
        passed,
        failed,
        sum(failed) OVER (PARTITION BY check_group, check_type ORDER BY confidence) - failed AS failed_below
    FROM scores
    WHERE confidence IS NOT NULL
),
orientation AS (
    SELECT
        check_group,
        check_type,
        sum(passed)::DOUBLE AS passed,
        sum(failed)::DOUBLE AS failed,
        sum(passed::DOUBLE * (failed_below + failed / 2))
        / nullif(sum(passed)::DOUBLE * sum(failed)::DOUBLE, 0) AS auc
    FROM ranked
    GROUP BY check_group, check_type
),
bounds AS (
    -- The interval holds each value that is not further from the AUC than z standard errors of its own.
    SELECT
        o.check_group,
        o.check_type,
        greatest(
            min(t.value) FILTER (
                WHERE t.value / 1000 <= o.auc
                AND (o.auc - t.value / 1000) ** 2
                <= {z_95} ** 2 * auc_variance(t.value / 1000, o.passed, o.failed)
            ) - 1,
            0
        ) / 1000 AS auc_low
    FROM orientation AS o
    CROSS JOIN (SELECT range AS value FROM range(1001)) AS t
    GROUP BY o.check_group, o.check_type
),
totals AS (
    SELECT
        check_group,
        check_type,
        sum(checks) AS checks,
        sum(checks) FILTER (WHERE confidence IS NOT NULL) AS scored
    FROM scores
    GROUP BY check_group, check_type
),
reached AS (
    SELECT
        check_group,
        check_type,
        hundredths(confidence) AS step,
        sum(checks) AS checks,
        sum(passed) AS passed,
        sum(failed) AS failed
    FROM scores
    WHERE confidence IS NOT NULL
    GROUP BY ALL
),
steps AS (
    SELECT range::INTEGER AS step FROM range(101)
),
simulated AS (
    SELECT
        t.check_group,
        t.check_type,
        s.step,
        t.checks,
        coalesce(t.scored, 0) AS scored,
        coalesce(sum(r.checks) FILTER (WHERE r.step >= s.step), 0) AS at_or_above,
        coalesce(sum(r.passed) FILTER (WHERE r.step < s.step), 0) AS flips_to_fail,
        coalesce(sum(r.failed) FILTER (WHERE r.step >= s.step), 0) AS flips_to_pass
    FROM totals AS t
    CROSS JOIN steps AS s
    LEFT JOIN reached AS r ON r.check_group = t.check_group AND r.check_type = t.check_type
    GROUP BY ALL
)
SELECT
    s.check_group,
    s.check_type,
    s.step / 100 AS threshold,
    s.scored::BIGINT AS scored,
    s.at_or_above::BIGINT AS at_or_above,
    ratio(s.at_or_above, s.scored) AS rate,
    ratio(s.at_or_above, s.checks) AS rate_null_as_fail,
    s.flips_to_fail::BIGINT AS flips_to_fail,
    s.flips_to_pass::BIGINT AS flips_to_pass,
    coalesce(b.auc_low > 0.5, FALSE) AS orientation_verified,
    o.auc,
    b.auc_low
FROM simulated AS s
LEFT JOIN orientation AS o ON o.check_group = s.check_group AND o.check_type = s.check_type
LEFT JOIN bounds AS b ON b.check_group = s.check_group AND b.check_type = s.check_type
ORDER BY s.check_group, s.check_type, s.step
