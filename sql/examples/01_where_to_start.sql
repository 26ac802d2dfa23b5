-- Where to start: what this build is of, and what every table is for.
SELECT t.table_name, t.estimated_size AS rows, t.comment AS meaning
FROM duckdb_tables() AS t
WHERE NOT t.internal AND t.database_name = current_database()
ORDER BY t.table_name;
