"""The ledger: submissions, attempts, leases, decisions and rate limits."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates the tables."""
    op.create_table(
        "submissions",
        sa.Column("submission_id", sa.String(64), primary_key=True),
        sa.Column("partition_date", sa.String(10), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("decision", sa.String(16)),
        sa.Column("claim_token", sa.String(32)),
        sa.Column("http_status", sa.Integer),
        sa.Column("requested_at", sa.BigInteger),
        sa.Column("responded_at", sa.BigInteger),
        sa.Column("latency_ms", sa.Float),
        sa.Column("response", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_index("submissions_by_partition", "submissions", ["partition_date", "state"])
    op.create_table(
        "attempts",
        sa.Column(
            "submission_id", sa.String(64), sa.ForeignKey("submissions.submission_id"), primary_key=True
        ),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("result", sa.String(16)),
        sa.Column("http_status", sa.Integer),
        sa.Column("latency_ms", sa.Float),
        sa.Column("billable", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("body", sa.Text),
    )
    op.create_table(
        "leases",
        sa.Column("partition_date", sa.String(10), primary_key=True),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("machine", sa.String(255), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("pid_started", sa.String(32), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("acquired_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("submission_id", sa.String(64), sa.ForeignKey("submissions.submission_id"), nullable=False),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("decided_by", sa.String(255), nullable=False),
        sa.Column("decided_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "rate_limits",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("arrival", sa.BigInteger, nullable=False),
    )
