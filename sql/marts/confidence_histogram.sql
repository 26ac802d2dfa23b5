-- Confidences by check type and status in 100 bins of width 0.01, empty bins included. Bins are left-closed
-- (bin_low <= confidence < bin_high); the last one is also closed at 1. The sum over bins is the number of
-- checks that have a confidence.
--
-- date: Day of the manifest, the daily partition.
-- check_group: Key under `modelResults`: `technicalChecks`, or OTHER (see model_checks).
-- check_type: Type of the check; OTHER if it is unknown, UNKNOWN if the response has none.
-- normalized_status: Status of these checks; a status that occurs on a day has all 100 bins.
-- bin: Number of the bin, 0 to 99.
-- bin_low: Lower edge, included.
-- bin_high: Upper edge, excluded except for the last bin.
-- checks: Checks with a confidence in the bin.
-- is_complete: Whether no submission of the day is undecided; see days.
WITH counts AS (
    SELECT
        date,
        check_group,
        check_type,
        normalized_status,
        least(hundredths(confidence), 99) AS bin,
        count(confidence) AS checks
    FROM model_checks
    GROUP BY ALL
),
present AS (
    SELECT DISTINCT date, check_group, check_type, normalized_status FROM counts
),
bins AS (
    SELECT range::INTEGER AS bin FROM range(100)
)
SELECT
    p.date,
    p.check_group,
    p.check_type,
    p.normalized_status,
    b.bin,
    b.bin / 100 AS bin_low,
    (b.bin + 1) / 100 AS bin_high,
    coalesce(c.checks, 0) AS checks,
    d.is_complete
FROM present AS p
JOIN days AS d ON d.date = p.date
CROSS JOIN bins AS b
LEFT JOIN counts AS c
    ON
        c.date = p.date
        AND c.check_group = p.check_group
        AND c.check_type = p.check_type
        AND c.normalized_status = p.normalized_status
        AND c.bin = b.bin
ORDER BY p.date, p.check_group, p.check_type, p.normalized_status, b.bin
