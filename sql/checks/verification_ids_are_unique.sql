-- No verification id occurs twice, over all days: twice would be one call counted, or paid, two times.
--
-- severity: error
-- counts: repeated ids
SELECT verification_id, count(*) AS occurrences
FROM verifications
GROUP BY verification_id
HAVING count(*) > 1
