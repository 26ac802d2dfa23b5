"""Legal holds: people whose data must be kept."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Creates the table."""
    op.create_table(
        "legal_holds",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("pseudonym", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(8), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("set_at", sa.BigInteger, nullable=False),
        sa.Column("set_by", sa.Text, nullable=False),
    )
