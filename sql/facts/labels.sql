-- Fact: one row per accepted label, as delivered. `submission_labels` has one row per submission.
-- If `KYC_MIN_CELL` is above 1, only the restricted file has this table.
--
-- submission_id: Submission id, unique forever.
-- label: genuine, fraud or unsure.
-- source: What decided, such as `manual-review` or `chargeback`.
-- decided_at: When it was decided (UTC).
-- attack: For a fraud: presentation, document or other; NULL if it is not known.
-- weight: Of a drawn sample: how many submissions this one stands for. NULL: it was not drawn.
-- stratum: Of a drawn sample: the stratum that it was drawn from.
SELECT submission_id, label, source, decided_at AT TIME ZONE 'UTC' AS decided_at, attack, weight, stratum
FROM lake.labels
ORDER BY submission_id, decided_at, source, label
