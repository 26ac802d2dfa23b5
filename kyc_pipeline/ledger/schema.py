"""The ledger's tables in SQLAlchemy Core. `migrations/` creates them.

Times are microseconds since the epoch (see `times.py`). Document paths are never stored here, and tag values
only as part of a response.
"""

import re
from enum import StrEnum
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Enum,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

from kyc_pipeline.ledger.models import Decision, State

HEAD_REVISION: Final = "0005"
"""The newest migration. A test compares it with `migrations/`."""

ERASED_CONTENT: Final = ""
"""The `content_sha256` of erased submissions, whose `submission_id` is a pseudonym."""

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


class StorableText(TypeDecorator[str]):
    """TEXT. NUL and lone surrogates, which a database may reject, are stored as their JSON escapes."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """The text to store."""
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return _UNSTORABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def _one_of(values: type[StrEnum]) -> Enum:
    """VARCHAR in the database, a StrEnum in Python."""
    return Enum(values, native_enum=False, length=16, values_callable=list)


metadata = MetaData()

submissions = Table(
    "submissions",
    metadata,
    Column("submission_id", String(64), primary_key=True),
    Column("partition_date", String(10), nullable=False),
    Column("content_sha256", String(64), nullable=False),
    Column("state", _one_of(State), nullable=False),
    Column("decision", _one_of(Decision)),
    Column("claim_token", String(32)),  # of the newest attempt
    Column("http_status", Integer),
    Column("requested_at", BigInteger),
    Column("responded_at", BigInteger),
    Column("latency_ms", Float),
    Column("response", StorableText),
    Column("error", StorableText),
    Column("updated_at", BigInteger, nullable=False),
    Index("submissions_by_partition", "partition_date", "state"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("submission_id", String(64), ForeignKey("submissions.submission_id"), primary_key=True),
    Column("number", Integer, primary_key=True),  # from 1, over all runs
    Column("token", String(32), nullable=False),  # of the claim
    Column("run_id", String(64), nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),  # NULL: no result recorded
    Column("result", String(16)),
    Column("http_status", Integer),
    Column("latency_ms", Float),
    Column("billable", Integer, nullable=False),  # 1 unless the call was surely not processed
    Column("error", StorableText),
    Column("body", StorableText),  # of a failed call, or a second response; see `submissions.response`
)

leases = Table(
    "leases",
    metadata,
    Column("partition_date", String(10), primary_key=True),
    Column("token", String(32), nullable=False),
    Column("machine", String(255), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("pid_started", String(32), nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("acquired_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),  # by the ledger's clock
    Column("boot_expires_at", BigInteger),  # by the boot clock of the holder's machine
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("submission_id", String(64), ForeignKey("submissions.submission_id"), nullable=False),
    Column("decision", _one_of(Decision), nullable=False),
    Column("decided_by", String(255), nullable=False),
    Column("decided_at", BigInteger, nullable=False),
    Column("reason", StorableText),
)

rate_limits = Table(
    "rate_limits",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("arrival", BigInteger, nullable=False),  # GCRA's theoretical arrival time
    Column("paused_until", BigInteger, nullable=False, server_default="0"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("name", Text, primary_key=True),  # of the tag; `submissionId` for a submission
    Column("pseudonym", String(64), primary_key=True),  # of its value, which is not stored
    Column("key_id", String(8), nullable=False),  # of the pseudonym's key
    Column("erased_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),  # NULL: unfinished, repeat the erasure
)

identity = Table(  # one row
    "identity",
    metadata,
    Column("ledger_id", String(32), primary_key=True),  # made with the ledger; moves with its content
    Column("lake_id", String(32)),  # NULL until the first call
    Column("generation", BigInteger, nullable=False),  # counted up by every commit of claims and results
    Column("restored_at", BigInteger),  # it may lack calls made before
    Column("moved_to", Text),  # URL without the password: this copy is out of use
)
