-- What may explain a change of a rate. Not published.
--
-- date: Day of the event.
-- event: `new_check_type`, `model_version` or `outage`.
-- name: The check type or the version; NULL for an outage.
WITH first_day AS (
    SELECT min(date) AS date FROM days
),
first_seen AS (
    SELECT 'new_check_type' AS event, check_type AS name, min(date) AS date
    FROM pass_rates
    WHERE checks > 0
    GROUP BY check_group, check_type
    UNION ALL
    SELECT 'model_version', value, min(date)
    FROM verified_rates_by_dimension
    WHERE dimension = 'model_version' AND value <> 'UNKNOWN' AND verifications > 0
    GROUP BY value
)
SELECT s.date, s.event, s.name
FROM first_seen AS s
JOIN first_day AS f ON s.date > f.date
UNION ALL
SELECT date, 'outage', NULL
FROM api_performance
JOIN days USING (date)
WHERE timeouts >= {outage_share} * accepted
