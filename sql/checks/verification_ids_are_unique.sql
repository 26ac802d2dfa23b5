-- No verification id occurs twice over all days.
--
-- severity: error
-- counts: repeated ids
-- todo: a call was counted or paid twice; see docs/operations.md
SELECT verification_id, count(*) AS occurrences
FROM verifications
GROUP BY verification_id
HAVING count(*) > 1
