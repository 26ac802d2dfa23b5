-- Tags that occur in responses or in what was verified, even if all their values are hidden.
--
-- name: Tag name; OTHER for one that no submission has.
SELECT DISTINCT name
FROM lake.verification_tags
ORDER BY name
