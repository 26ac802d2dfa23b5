"""Verify: one paid call a submission. `ledger` remembers, `dispatcher` sends, `engine` runs a day."""
