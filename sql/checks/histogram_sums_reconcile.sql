-- The bins of `confidence_histogram` add up to the number of checks with a confidence.
--
-- severity: error
-- counts: days and check types
-- todo: run `kyc-pipeline publish --force`, or materialize the group analyze; if it still fails, it is a bug
SELECT
    coalesce(h.date, s.date) AS date,
    coalesce(h.check_group, s.check_group) AS check_group,
    coalesce(h.check_type, s.check_type) AS check_type,
    h.checks AS in_bins,
    s.with_confidence
FROM (
    SELECT date, check_group, check_type, sum(checks) AS checks
    FROM confidence_histogram
    GROUP BY ALL
) AS h
FULL JOIN confidence_summary AS s
    ON s.date = h.date AND s.check_group = h.check_group AND s.check_type = h.check_type
WHERE h.checks IS DISTINCT FROM s.with_confidence
