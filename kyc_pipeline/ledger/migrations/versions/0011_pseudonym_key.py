"""The id of the key that makes the pseudonyms."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Adds the column."""
    op.add_column("identity", sa.Column("pseudonym_key_id", sa.String(8)))
