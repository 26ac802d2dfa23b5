-- Lift of each pair of checks, among the verifications in which both passed or failed: above 1, they fail
-- together more often than by chance. A pair with few failures together says little.
WITH decided AS (
    SELECT date, verification_id, check_group, check_type, bool_or(normalized_status = 'FAIL') AS failed
    FROM model_checks
    WHERE normalized_status IN ('PASS', 'FAIL')
    GROUP BY ALL
)
SELECT
    a.check_group AS first_group,
    a.check_type AS first,
    b.check_group AS second_group,
    b.check_type AS second,
    count(*) AS verifications,
    count(*) FILTER (WHERE a.failed AND b.failed) AS together,
    together * verifications / (count(*) FILTER (WHERE a.failed) * count(*) FILTER (WHERE b.failed)) AS lift
FROM decided AS a
JOIN decided AS b USING (date, verification_id)
WHERE (a.check_group, a.check_type) < (b.check_group, b.check_type)
GROUP BY ALL
HAVING together > 0
ORDER BY lift DESC;
