"""Who was erased, by pseudonym."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Creates the table."""
    op.create_table(
        "erasures",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("pseudonym", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(8), nullable=False),
        sa.Column("erased_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
    )
