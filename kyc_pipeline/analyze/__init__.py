"""Analyze: builds the DuckDB warehouse and the report from the lake.

`sql_models` loads the SQL of `sql/`, `build` runs it, `quality` checks the result, and `publish` replaces the
file that analysts open, unless all is `up_to_date`. `lineage` and `figures` describe the tables for Dagster,
`dictionary` writes the data dictionary, `report` makes the page.
"""
