-- The curated tables of a day are made from the same responses.
--
-- severity: error
-- counts: days
-- todo: launch flatten_and_publish for these days, or run `kyc-pipeline backfill --force`
SELECT date, count(*) AS tables, count(DISTINCT coalesce(source, '')) AS sources
FROM build_partitions
WHERE table_name IN ({curated_tables})
GROUP BY date
HAVING count(*) <> {curated_table_count} OR count(DISTINCT coalesce(source, '')) <> 1
