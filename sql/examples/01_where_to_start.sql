-- Where to start: every table with its number of rows and its meaning.
SELECT table_name, estimated_size AS rows, comment AS meaning
FROM duckdb_tables()
WHERE NOT internal AND database_name = current_database()
UNION ALL
-- A fact that is too large for the file is a view over the lake.
SELECT view_name, NULL, comment
FROM duckdb_views()
WHERE NOT internal AND database_name = current_database()
ORDER BY table_name;
