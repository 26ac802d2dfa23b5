"""Alembic's entry point: it runs inside the connection and the transaction that `database.py` opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
