-- ID documents that several people presented: a person is a customer of a company, because companies may
-- number their customers alike. Pseudonyms stand for the people: only the source system knows who they are.
-- Where a small company is hidden, customers with one number count as one person.
WITH people AS (
    SELECT
        date,
        t.verification_id,
        min(t.pseudonym) FILTER (WHERE t.name = 'companyId') AS company,
        min(t.pseudonym) FILTER (WHERE t.name = 'customerId') AS customer,
        coalesce(any_value(s.company_id) = 'SUPPRESSED', FALSE) AS is_hidden
    FROM verification_tags AS t
    JOIN submissions AS s USING (date, submission_id)
    GROUP BY date, t.verification_id
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
