"""An index to find the calls of a day.

Until 0012, with `DEEPXL_MAX_CALLS_PER_DAY`, each commit of claims counted them.
"""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Adds the index."""
    op.create_index("attempts_by_start", "attempts", ["started_at", "result"])
