"""Verify: one paid call per submission. `engine` runs a day, `dispatcher` sends, `reconcile` compares."""
