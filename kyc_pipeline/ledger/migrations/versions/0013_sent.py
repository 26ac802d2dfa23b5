"""What was sent of a submission, if that is less than the submission; see `lake/sent.py`."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Adds the columns."""
    op.add_column("submissions", sa.Column("sent", sa.Text))
    op.add_column("attempts", sa.Column("sent", sa.Text))
