"""Which ledger this is, and which lake it belongs to."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Creates the table with its only row."""
    identity = op.create_table(
        "identity",
        sa.Column("ledger_id", sa.String(32), primary_key=True),
        sa.Column("lake_id", sa.String(32)),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("restored_at", sa.BigInteger),
        sa.Column("moved_to", sa.Text),
    )
    op.bulk_insert(identity, [{"ledger_id": secrets.token_hex(16), "generation": 0}])
