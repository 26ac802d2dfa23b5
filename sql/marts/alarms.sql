-- Changes of rates that somebody should look at; on average, at most one a year is false, over all series
-- together. After each week, the last {alarm_windows} weeks of every rate are compared with the
-- {alarm_baseline_weeks} weeks before, using the days' own variance. Weeks that raised an alarm leave the
-- baseline; a change that lasts {alarm_new_normal} weeks becomes the new one. Weeks that have not ended and
-- incomplete days do not count.
--
-- kind: rate_fell or rate_rose.
-- series: check_group and check_type, then dimension and value for a slice, joined with /.
-- check_group: Key under `modelResults`; `verdict` for the decision itself.
-- check_type: Type of the check; VERIFIED for the decision.
-- dimension: `company` or a tag of `KYC_DIMENSIONS`; NULL for the rate of all submissions.
-- value: Its value; NULL for the rate of all submissions.
-- from_date: Monday of the first week of the change.
-- to_date: Sunday of the last one, so far.
-- effect: Rate of the strongest window minus that of its baseline.
-- effect_low: Lower bound of its 95% interval, with the days' own variance.
-- effect_high: Upper bound of the same interval.
-- evidence: The two rates, their counts, the overdispersion and the p-value.
-- look_at: Where to look next.
-- explained_by: Events from a week before to the end of the change: a new check type, another model version,
--   an outage (timeouts of {outage_percent} of a day or more); NULL if there was none.
WITH series AS (
    SELECT DISTINCT board, series, check_group, check_type, dimension, value
    FROM rate_weeks
),
named_events AS (
    SELECT date, concat_ws(' ', event, name) AS name FROM events
),
explanations AS (
    SELECT
        c.board,
        c.series,
        c.from_date,
        array_to_string(list_sort(list(DISTINCT e.name)), ', ') AS explained_by
    FROM found_changes AS c
    JOIN named_events AS e ON e.date BETWEEN c.from_date - 7 AND c.to_date
    GROUP BY c.board, c.series, c.from_date
)
SELECT
    CASE WHEN c.effect < 0 THEN 'rate_fell' ELSE 'rate_rose' END AS kind,
    concat_ws('/', s.check_group, s.check_type, s.dimension, s.value) AS series,
    s.check_group,
    s.check_type,
    s.dimension,
    s.value,
    c.from_date,
    c.to_date,
    c.effect,
    c.effect_low,
    c.effect_high,
    format(
        '{:.1f}% of {:,} against {:.1f}% of {:,} before; variance {:.1f} times that of chance; p = {:.1g}',
        100 * c.rate,
        c.decided,
        100 * c.baseline_rate,
        c.baseline_decided,
        c.dispersion,
        c.p
    ) AS evidence,
    CASE
        WHEN s.value IS NOT NULL THEN 'verified_rates_by_company or verified_rates_by_dimension of this value'
        WHEN s.check_group = 'verdict' THEN 'mix_adjusted_changes (is it the mix?), then failure_attribution'
        ELSE 'confidence_drift and confidence_summary of this check, then pass_rates_by_dimension'
    END AS look_at,
    e.explained_by
FROM found_changes AS c
JOIN series AS s ON s.board = c.board AND s.series = c.series
LEFT JOIN explanations AS e ON e.board = c.board AND e.series = c.series AND e.from_date = c.from_date
ORDER BY c.from_date, series
