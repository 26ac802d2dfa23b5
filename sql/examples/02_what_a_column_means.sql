-- What the columns of one table mean.
SELECT column_name, data_type, comment AS meaning
FROM duckdb_columns()
WHERE table_name = 'pass_rates' AND database_name = current_database()
ORDER BY column_index;
