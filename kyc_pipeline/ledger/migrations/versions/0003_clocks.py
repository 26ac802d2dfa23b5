"""Leases by the boot clock; pauses of a rate limit beside its arrivals."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the columns."""
    op.add_column("leases", sa.Column("boot_expires_at", sa.BigInteger))
    op.add_column("rate_limits", sa.Column("paused_until", sa.BigInteger, nullable=False, server_default="0"))
