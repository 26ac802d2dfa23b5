"""Responses that only the lake has; see `ledger/offload.py`."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0016"

_NAME = "response_kept"
_CHANGE = "UPDATE OF response ON submissions"
_WHEN = (
    "OLD.state = 'completed' AND OLD.response IS NOT NULL AND NEW.response IS NULL"
    " AND NEW.response_sha256 IS NULL"
)
_MESSAGE = "invariant: a response leaves the ledger only for the lake"


def upgrade() -> None:
    """Creates the column, the table and the trigger."""
    op.add_column("submissions", sa.Column("response_sha256", sa.String(64)))
    op.create_table(
        "offloaded_days",
        sa.Column("partition_date", sa.String(10), primary_key=True),
        sa.Column("finished_at", sa.BigInteger),
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER {_NAME} BEFORE {_CHANGE} WHEN {_WHEN} "
            f"BEGIN SELECT RAISE(ABORT, '{_MESSAGE}'); END"
        )
        return
    op.execute(
        f"CREATE TRIGGER {_NAME} BEFORE {_CHANGE} FOR EACH ROW WHEN ({_WHEN}) "
        f"EXECUTE FUNCTION refuse_change('{_MESSAGE}')"
    )
