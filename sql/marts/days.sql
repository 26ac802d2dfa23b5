-- The days of the warehouse, and whether their figures are complete. While submissions are undecided, the
-- rates of a day can still change.
--
-- date: Day of the manifest, the daily partition.
-- accepted: Submissions of the day.
-- undecided: Those that may still get a verdict: not yet settled ({undecided_outcomes}), or completed on a
--   day that is not flattened.
-- is_complete: Whether no submission is undecided.
WITH files AS (
    SELECT
        date,
        coalesce(max(rows) FILTER (WHERE table_name = 'submissions'), 0) AS accepted,
        coalesce(max(rows) FILTER (WHERE table_name = 'verification_responses'), 0) AS responses,
        bool_or(table_name = 'verifications') AS is_flattened
    FROM lake.partitions
    GROUP BY date
),
outcomes AS (
    SELECT
        date,
        count(*) FILTER (WHERE outcome IN ({undecided_outcomes})) AS unsettled,
        count(*) FILTER (WHERE outcome = 'completed') AS completed
    FROM lake.verification_responses
    GROUP BY date
),
counts AS (
    SELECT
        f.date,
        f.accepted,
        greatest(f.accepted - f.responses, 0) + coalesce(o.unsettled, 0)
        + CASE WHEN f.is_flattened THEN 0 ELSE coalesce(o.completed, 0) END AS undecided
    FROM files AS f
    LEFT JOIN outcomes AS o USING (date)
)
SELECT date, accepted, undecided, undecided = 0 AS is_complete
FROM counts
ORDER BY date
