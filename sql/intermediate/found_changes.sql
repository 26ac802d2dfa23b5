-- Changes of the rates in rate_weeks. Not published. This query only defines the columns: the build fills
-- them with what `kyc_pipeline.analyze.changes` finds in rate_weeks.
--
-- board: Board of the series.
-- series: Number of the series.
-- from_date: Monday of the first changed week.
-- to_date: Sunday of the last one.
-- effect: Rate of the strongest window minus that of its baseline.
-- effect_low: Lower bound of its 95% interval.
-- effect_high: Upper bound of the same interval.
-- p: Its p-value.
-- rate: Rate of the window.
-- baseline_rate: Rate of the baseline.
-- decided: Checks of the window.
-- baseline_decided: Checks of the baseline.
-- dispersion: Variance of the days' rates over that of chance alone.
SELECT
    board,
    series,
    week AS from_date,
    week AS to_date,
    passed::DOUBLE AS effect,
    passed::DOUBLE AS effect_low,
    passed::DOUBLE AS effect_high,
    excess AS p,
    passed::DOUBLE AS rate,
    passed::DOUBLE AS baseline_rate,
    decided,
    decided AS baseline_decided,
    excess AS dispersion
FROM rate_weeks
WHERE FALSE
