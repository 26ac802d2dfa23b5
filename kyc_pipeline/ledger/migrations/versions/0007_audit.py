"""The audit trail, which the database protects from changes."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_REFUSALS = {
    "UPDATE": "invariant: an entry of the audit trail is never changed",
    "DELETE": "invariant: an entry of the audit trail is never removed",
}
"""`database.py` looks for the first word of the messages."""


def upgrade() -> None:
    """Creates the table and its triggers."""
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("happened_at", sa.BigInteger, nullable=False),
        sa.Column("operator", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject_name", sa.Text),
        sa.Column("subject", sa.String(64)),
        sa.Column("key_id", sa.String(8)),
        sa.Column("reason", sa.Text),
        sa.Column("request", sa.Text),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for change, message in _REFUSALS.items():
        op.execute(
            f"CREATE TRIGGER audit_no_{change.lower()} BEFORE {change} ON audit "
            + (
                f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
                if is_sqlite
                else f"FOR EACH ROW EXECUTE FUNCTION refuse_change('{message}')"
            )
        )
    if not is_sqlite:  # which has no TRUNCATE
        op.execute(
            "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit "
            f"FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('{_REFUSALS['DELETE']}')"
        )
