"""The register of erased people's records that DeepXL must delete."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Creates the table."""
    op.create_table(
        "vendor_deletions",
        sa.Column("submission", sa.String(64), primary_key=True),
        sa.Column("submission_id", sa.String(64)),
        sa.Column("verification_ids", sa.Text, nullable=False),
        sa.Column("sent_at", sa.BigInteger),
        sa.Column("erased_at", sa.BigInteger, nullable=False),
        sa.Column("request", sa.Text),
        sa.Column("confirmed_on", sa.String(10)),
        sa.Column("confirmed_by", sa.Text),
        sa.Column("evidence", sa.Text),
    )
