"""Alembic's migrations of the ledger, shipped with the package and applied when the ledger is opened."""
