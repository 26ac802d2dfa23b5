"""Analyze: builds the DuckDB warehouse and the report from the lake.

`models` loads the SQL of `sql/`, `build` runs it, `quality` checks the result, `publish` replaces the file
that analysts open. `lineage` and `figures` describe the tables for Dagster, `dictionary` writes the data
dictionary, `report` makes the page.
"""
