-- ID documents that several people presented. Pseudonyms stand for the people: only the
-- source system knows who they are.
SELECT
    v.id_document_pseudonym,
    count(DISTINCT t.pseudonym) AS people,
    min(v.date) AS first_seen,
    max(v.date) AS last_seen
FROM verifications AS v
JOIN verification_tags AS t USING (date, verification_id)
WHERE t.name = 'customerId' AND v.id_document_pseudonym IS NOT NULL
GROUP BY v.id_document_pseudonym
HAVING count(DISTINCT t.pseudonym) > 1
ORDER BY people DESC, first_seen ASC;
