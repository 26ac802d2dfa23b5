-- No verification id occurs twice over all days; if one does, a call was counted or paid twice.
--
-- severity: error
-- counts: repeated ids
SELECT verification_id, count(*) AS occurrences
FROM verifications
GROUP BY verification_id
HAVING count(*) > 1
