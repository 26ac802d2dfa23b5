"""The number of calls of each day, counted once."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
_DAY = 86_400_000_000


def upgrade() -> None:
    """Creates the table and counts the calls so far."""
    op.create_table(
        "calls_of_days",
        sa.Column("day", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("calls", sa.Integer, nullable=False),
    )
    op.execute(
        f"INSERT INTO calls_of_days SELECT started_at - started_at % {_DAY}, count(*) FROM attempts "  # noqa: S608
        "WHERE result IS NULL OR result <> 'not_sent' GROUP BY 1"
    )
