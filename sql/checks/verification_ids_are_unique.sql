-- No verification id occurs twice over all days: that would be one call counted, or paid, twice.
--
-- severity: error
-- counts: repeated ids
SELECT verification_id, count(*) AS occurrences
FROM verifications
GROUP BY verification_id
HAVING count(*) > 1
