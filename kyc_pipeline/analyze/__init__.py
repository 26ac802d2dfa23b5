"""Analyze: from the lake to the published DuckDB warehouse and the report.

`models` reads the SQL of `sql/`, `build` runs it, `quality` checks the result, `publish` puts it where
analysts open it, `report` and `charts` draw it, `dictionary` writes the data dictionary.
"""
