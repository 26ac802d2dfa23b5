-- Lift of each pair of failed checks: above 1, they fail together more often than by chance. A pair with
-- few verifications (`together`) says little.
WITH failed AS (
    SELECT DISTINCT date, verification_id, check_type
    FROM model_checks
    WHERE normalized_status = 'FAIL'
),
singles AS (
    SELECT check_type, count(*) AS n
    FROM failed
    GROUP BY check_type
),
pairs AS (
    SELECT a.check_type AS first, b.check_type AS second, count(*) AS together
    FROM failed AS a
    JOIN failed AS b USING (date, verification_id)
    WHERE a.check_type < b.check_type
    GROUP BY ALL
)
SELECT first, second, together, together * (SELECT count(*) FROM verifications) / (x.n * y.n) AS lift
FROM pairs
JOIN singles AS x ON x.check_type = first
JOIN singles AS y ON y.check_type = second
ORDER BY lift DESC;
