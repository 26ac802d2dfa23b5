"""Analyze: builds the DuckDB warehouse and the report from the lake.

`sql_models` loads the SQL of `sql/`, `build` runs it, `quality` checks the result, and `publish` replaces the
file that analysts open, unless all is `up_to_date`. `lineage` and `figures` describe the tables for Dagster,
`report` makes the page. `changes` finds alarms, `small_cells` and `label_cells` hide small cells. `turn` lets
one run publish at a time, `object_place` publishes to S3, and `sample` draws submissions for manual review.
`choices` holds the settings that determine the content. In development, `dictionary` writes the data
dictionary, and the lineage that `derived_lineage` finds in the SQL.
"""
