-- Week-to-week changes of rates, with and without the change of the mix. If one country fails more often and
-- its share grows, the rate falls although no country has changed: `adjusted_change` is the change at an
-- equal mix in both weeks (direct standardisation over the values of a dimension that both weeks have).
--
-- week: Monday of the week.
-- dimension: Dimension of the mix: `company`, a tag of `KYC_DIMENSIONS`, or `model_version`.
-- series: check_group and check_type, joined with /.
-- check_group: Key under `modelResults`: `technicalChecks`, or OTHER (see model_checks); `verdict` for the
--   decision itself.
-- check_type: Type of the check; VERIFIED for the decision.
-- change: Plain change of the rate, as in pass_rate_changes.
-- adjusted_change: Mean of the values' own changes, weighted by their decided checks in both weeks
--   together.
-- adjusted_low: Lower bound of its 95% interval (Wald, with one success and one failure added to each
--   rate).
-- adjusted_high: Upper bound of the same interval.
-- mix_effect: change - adjusted_change: the effect of the mix, and of values that only one week has.
-- compared_share: Share of both weeks' decided checks with a value that both weeks have.
-- is_complete: Whether neither week has undecided submissions.
WITH daily AS (
    SELECT
        date,
        'company' AS dimension,
        company_id AS value,
        'verdict' AS check_group,
        'VERIFIED' AS check_type,
        verified AS passed,
        verifications AS decided
    FROM verified_rates_by_company
    UNION ALL
    SELECT date, dimension, value, 'verdict', 'VERIFIED', verified, verifications
    FROM verified_rates_by_dimension
    UNION ALL
    SELECT date, dimension, value, check_group, check_type, passed, passed + failed
    FROM pass_rates_by_dimension
),
weekly AS (
    SELECT
        date_trunc('week', date)::DATE AS week,
        dimension,
        value,
        check_group,
        check_type,
        sum(passed)::BIGINT AS passed,
        sum(decided)::BIGINT AS decided
    FROM daily
    GROUP BY ALL
    HAVING sum(decided) > 0
),
paired AS (
    SELECT
        w.week,
        w.dimension,
        w.check_group,
        w.check_type,
        w.passed,
        w.decided,
        p.passed AS previous_passed,
        p.decided AS previous_decided,
        ratio(
            w.decided + p.decided,
            sum(w.decided + p.decided) OVER (PARTITION BY w.week, w.dimension, w.check_group, w.check_type)
        ) AS weight
    FROM weekly AS w
    JOIN weekly AS p
        ON
            p.week = w.week - 7
            AND p.dimension = w.dimension
            AND p.value = w.value
            AND p.check_group = w.check_group
            AND p.check_type = w.check_type
),
adjusted AS (
    SELECT
        week,
        dimension,
        check_group,
        check_type,
        sum(weight * (ratio(passed, decided) - ratio(previous_passed, previous_decided))) AS adjusted_change,
        {z_95} * sqrt(
            sum(
                weight ** 2
                * (variance_of_rate(passed, decided) + variance_of_rate(previous_passed, previous_decided))
            )
        ) AS half_width,
        sum(decided + previous_decided) AS compared
    FROM paired
    GROUP BY week, dimension, check_group, check_type
)
SELECT
    a.week,
    a.dimension,
    concat_ws('/', a.check_group, a.check_type) AS series,
    a.check_group,
    a.check_type,
    c.change,
    a.adjusted_change,
    a.adjusted_change - a.half_width AS adjusted_low,
    a.adjusted_change + a.half_width AS adjusted_high,
    c.change - a.adjusted_change AS mix_effect,
    ratio(a.compared, c.decided + c.previous_decided) AS compared_share,
    c.is_complete
FROM adjusted AS a
JOIN pass_rate_changes AS c
    ON c.week = a.week AND c.check_group = a.check_group AND c.check_type = a.check_type
ORDER BY a.week, a.dimension, a.check_group, a.check_type
