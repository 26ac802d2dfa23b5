"""The earlier keys of pseudonyms that were made anew with another key; see `privacy/pseudonyms.py`."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Adds the columns."""
    for table in ("erasures", "legal_holds"):
        op.add_column(table, sa.Column("earlier_keys", sa.Text, nullable=False, server_default=""))
