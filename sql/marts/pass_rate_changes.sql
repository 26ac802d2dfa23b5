-- Pass rates of each week compared with the week before, with the 95% Newcombe interval of the difference.
-- A change is significant if both weeks have at least {low_n} decided checks and the interval excludes 0,
-- whatever the verdicts of undecided submissions will be. Many such changes are chance: `alarms` has those
-- to act on.
--
-- week: Monday of the week.
-- check_group: Key under `modelResults`: `technicalChecks`, or OTHER (see model_checks); `verdict` for the
--   decision itself.
-- check_type: Type of the check; VERIFIED for the decision.
-- decided: Checks that passed or failed in the week.
-- passed: Those that passed.
-- pass_rate: passed / decided; NULL if no check was decided.
-- days: Days of the week with a decided check; with fewer than 7, the week may not be over.
-- previous_decided: `decided` of the week before; NULL if that week has no data.
-- previous_days: `days` of the week before.
-- previous_passed: `passed` of the week before.
-- previous_pass_rate: `pass_rate` of the week before.
-- change: pass_rate - previous_pass_rate.
-- change_low: Lower bound of the 95% Newcombe interval of the change.
-- change_high: Upper bound of the same interval.
-- significant: Whether the interval excludes 0, with enough decided checks in both weeks. Undecided
--   submissions count as failed or as passed, whichever makes the change smaller.
-- low_n: Fewer than {low_n} decided checks in either week.
-- undecided: Submissions of the week that may still get a verdict; see days.
-- previous_undecided: `undecided` of the week before.
-- is_complete: Whether neither week has undecided submissions.
WITH daily AS (
    SELECT date, check_group, check_type, passed, passed + failed AS decided FROM pass_rates
    WHERE checks > 0
    UNION ALL
    SELECT date, 'verdict', 'VERIFIED', verified, verifications FROM verified_rates
    WHERE verifications > 0
),
weekly AS (
    SELECT
        date_trunc('week', date)::DATE AS week,
        check_group,
        check_type,
        sum(decided)::BIGINT AS decided,
        sum(passed)::BIGINT AS passed,
        count(DISTINCT date) FILTER (WHERE decided > 0) AS days
    FROM daily
    GROUP BY ALL
),
weeks AS (
    SELECT date_trunc('week', date)::DATE AS week, sum(undecided)::BIGINT AS undecided
    FROM days
    GROUP BY ALL
),
compared AS (
    SELECT
        w.week,
        w.check_group,
        w.check_type,
        w.decided,
        w.passed,
        w.days,
        p.decided AS previous_decided,
        p.days AS previous_days,
        p.passed AS previous_passed,
        u.undecided,
        v.undecided AS previous_undecided,
        newcombe_low(w.passed, w.decided, p.passed, p.decided) AS change_low,
        newcombe_high(w.passed, w.decided, p.passed, p.decided) AS change_high,
        newcombe_low(
            w.passed, w.decided + u.undecided, p.passed + v.undecided, p.decided + v.undecided
        ) AS least_rise,
        newcombe_high(
            w.passed + u.undecided, w.decided + u.undecided, p.passed, p.decided + v.undecided
        ) AS least_fall
    FROM weekly AS w
    JOIN weeks AS u ON u.week = w.week
    LEFT JOIN weekly AS p
        ON p.week = w.week - 7 AND p.check_group = w.check_group AND p.check_type = w.check_type
    LEFT JOIN weeks AS v ON v.week = w.week - 7
)
SELECT
    week,
    check_group,
    check_type,
    decided,
    passed,
    ratio(passed, decided) AS pass_rate,
    days,
    previous_decided,
    previous_days,
    previous_passed,
    ratio(previous_passed, previous_decided) AS previous_pass_rate,
    ratio(passed, decided) - ratio(previous_passed, previous_decided) AS change,
    change_low,
    change_high,
    coalesce((least_rise > 0 OR least_fall < 0) AND NOT is_low_n(least(decided, previous_decided)), FALSE)
        AS significant,
    is_low_n(decided) OR is_low_n(coalesce(previous_decided, 0)) AS low_n,
    undecided,
    previous_undecided,
    undecided + coalesce(previous_undecided, 0) = 0 AS is_complete
FROM compared
ORDER BY week, check_group, check_type
