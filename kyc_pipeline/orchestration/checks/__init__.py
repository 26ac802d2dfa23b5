"""The checks of each stage as Dagster has them, one module a stage."""
