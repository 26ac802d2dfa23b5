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

HEAD_REVISION: Final = "0018"
"""The newest migration. A test compares it with `migrations/`."""

ERASED_CONTENT: Final = ""
"""The `content_sha256` of erased submissions, whose `submission_id` is a pseudonym."""

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


def storable(value: str) -> str:
    """The text with NUL and lone surrogates as their JSON escapes."""
    if value.isascii() and "\0" not in value:
        return value
    return _UNSTORABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


class StorableText(TypeDecorator[str]):
    """TEXT. NUL and lone surrogates, which a database may reject, are stored as their JSON escapes."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """The text to store."""
        return None if value is None else storable(value)


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
    Column("sent", StorableText),  # by the response's call, else the newest one: see `lake/sent.py`
    Column("updated_at", BigInteger, nullable=False),
    Column("response_sha256", String(64)),  # of a response that only the lake has: see `offload.py`
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
    Column("billable", Integer, nullable=False),  # 1 unless the call was certainly not processed
    Column("error", StorableText),
    Column("body", StorableText),  # of a failed call, or a second response; see `submissions.response`
    Column("sent", StorableText),
    Index("attempts_by_start", "started_at", "result"),
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

owners = Table(
    "owners",
    metadata,
    Column("submission_id", String(64), primary_key=True),  # decides which day accepts it
    Column("partition_date", String(10), nullable=False),
    Column("content_sha256", String(64), nullable=False),
    Column("documents_sha256", String(64), nullable=False),  # of the hashes of both documents
    Index("owners_by_partition", "partition_date"),
    Index("owners_by_documents", "documents_sha256", "partition_date"),
)

ingests = Table(
    "ingests",
    metadata,
    Column("partition_date", String(10), primary_key=True),
    Column("version", Text),  # of the partition of `submissions` whose ids are all in `owners`
    Column("publishing", String(32)),  # token of the lease under which an ingest replaces the partition
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

calls_of_days = Table(
    "calls_of_days",
    metadata,
    Column("day", BigInteger, primary_key=True, autoincrement=False),  # when it began, at midnight UTC
    Column("calls", Integer, nullable=False),  # attempts of the day that are calls
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
    Column("earlier_keys", Text, nullable=False, server_default=""),  # ids, separated by commas: see `rekey`
)

audit = Table(
    "audit",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # from 1, without gaps
    Column("happened_at", BigInteger, nullable=False),
    Column("operator", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject_name", Text),  # of the tag; `submissionId` for a submission
    Column("subject", String(64)),  # pseudonym of its value, which is not stored
    Column("key_id", String(8)),  # of the pseudonym's key
    Column("reason", Text),
    Column("request", Text),
    Column("details", Text, nullable=False),  # JSON object
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

vendor_deletions = Table(
    "vendor_deletions",
    metadata,
    Column("submission", String(64), primary_key=True),  # pseudonym of the erased submission's id
    Column("submission_id", String(64)),  # while DeepXL may have a record that only this finds
    Column("verification_ids", Text, nullable=False),  # separated by commas
    Column("sent_at", BigInteger),
    Column("erased_at", BigInteger, nullable=False),
    Column("request", Text),
    Column("confirmed_on", String(10)),  # NULL: DeepXL has not confirmed the deletion
    Column("confirmed_by", Text),
    Column("evidence", Text),
)

legal_holds = Table(
    "legal_holds",
    metadata,
    Column("name", Text, primary_key=True),  # as in `erasures`
    Column("pseudonym", String(64), primary_key=True),
    Column("key_id", String(8), nullable=False),
    Column("reason", Text, nullable=False),
    Column("set_at", BigInteger, nullable=False),
    Column("set_by", Text, nullable=False),
    Column("earlier_keys", Text, nullable=False, server_default=""),  # as in `erasures`
)

publications = Table(
    "publications",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),  # from 1, over all hosts
    Column("place", Text, nullable=False),  # `s3://…`, or the host and its path
    Column("run_id", String(64), nullable=False),
    Column("began_at", BigInteger, nullable=False),  # before the build read anything
    Column("published_at", BigInteger),  # NULL: not published, or known to be gone
)

offloaded_days = Table(  # days with responses that only the lake has
    "offloaded_days",
    metadata,
    Column("partition_date", String(10), primary_key=True),
    Column("finished_at", BigInteger),  # NULL: unfinished, some are still in the ledger
)

identity = Table(  # one row
    "identity",
    metadata,
    Column("ledger_id", String(32), primary_key=True),  # created with the ledger; copied with its content
    Column("lake_id", String(32)),  # NULL until the first call
    Column("generation", BigInteger, nullable=False),  # incremented by every commit of claims and results
    Column("restored_at", BigInteger),  # it may lack calls made before this
    Column("moved_to", Text),  # URL without the password: this copy is out of use
    Column("pseudonym_key_id", String(8)),  # NULL until the first pseudonym
)
