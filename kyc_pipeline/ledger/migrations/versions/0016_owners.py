"""Which day owns a submission id; see `ledger/owners.py`. The next ingest fills the tables from the lake."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Creates the tables."""
    op.create_table(
        "owners",
        sa.Column("submission_id", sa.String(64), primary_key=True),
        sa.Column("partition_date", sa.String(10), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("documents_sha256", sa.String(64), nullable=False),
    )
    op.create_index("owners_by_partition", "owners", ["partition_date"])
    op.create_index("owners_by_documents", "owners", ["documents_sha256", "partition_date"])
    op.create_table(
        "ingests",
        sa.Column("partition_date", sa.String(10), primary_key=True),
        sa.Column("version", sa.Text),
        sa.Column("publishing", sa.String(32)),
    )
