-- ID documents that several people presented: a person is a customer of a company, because companies may
-- number their customers alike. Pseudonyms stand for the people: only the source system knows who they are.
-- Where a small company is hidden (its tag has no pseudonym), customers with one number count as one person.
WITH people AS (
    SELECT
        date,
        verification_id,
        min(pseudonym) FILTER (WHERE name = 'companyId') AS company,
        min(pseudonym) FILTER (WHERE name = 'customerId') AS customer,
        bool_or(name = 'companyId' AND pseudonym IS NULL) AS is_hidden
    FROM verification_tags
    GROUP BY date, verification_id
    HAVING customer IS NOT NULL
)
SELECT
    v.id_document_pseudonym,
    greatest(
        count(DISTINCT concat_ws('/', coalesce(p.company, ''), p.customer)) FILTER (WHERE NOT p.is_hidden),
        count(DISTINCT p.customer)
    ) AS people,
    count(DISTINCT p.company) AS companies,
    min(v.date) AS first_seen,
    max(v.date) AS last_seen
FROM verifications AS v
JOIN people AS p USING (date, verification_id)
WHERE v.id_document_pseudonym IS NOT NULL
GROUP BY v.id_document_pseudonym
HAVING people > 1
ORDER BY people DESC, first_seen ASC;
