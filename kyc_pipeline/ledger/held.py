"""Held submissions: sent, the answer lost, and look-up did not settle them. A person decides.

`retry`: the next run of the partition looks once more, and sends it again if it is not found; that may be
paid twice. `abandon`: it is never sent again. Its outcome stays `uncertain`, which is the truth about it
(and `failed` would be sent again); the decision is on record, and it is held no longer.
"""

import getpass
import os
from typing import Literal

from sqlalchemy import or_, select

from kyc_pipeline.errors import UsageError
from kyc_pipeline.ledger.ledger import HeldSubmission, Ledger
from kyc_pipeline.ledger.schema import Decision, State, submissions


def list_held(ledger: Ledger, partition_date: str | None = None) -> list[HeldSubmission]:
    """Submissions that wait for a decision, oldest partition first. Does not create a ledger."""
    return ledger.held(partition_date) if ledger.exists() else []


def resolve_held(ledger: Ledger, submission_id: str, decision: str, who: str) -> None:
    """Records the decision (`retry` or `abandon`) and who made it; the newest one counts.

    Raises :class:`UsageError` for another word, and for a submission that is unknown or not uncertain.
    """
    try:
        chosen = Decision(decision)
    except ValueError:
        raise UsageError(f"a held submission is resolved as retry or abandon, not as {decision!r}") from None
    if not ledger.exists():
        raise UsageError(f"submission {submission_id} is not in the ledger: see `held list`")
    ledger.decide(submission_id, chosen, who)


def operator() -> str:
    """Who decides, as far as the machine knows: the login name of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return f"user {os.getuid()}"


def dates_to_send_again(ledger: Ledger, policy: Literal["hold", "retry"]) -> list[str]:
    """The partitions whose next run sends uncertain submissions again, by decision or by `policy`."""
    if not ledger.exists():
        return []
    again = submissions.c.decision == Decision.RETRY
    if policy == "retry":
        again = or_(again, submissions.c.decision.is_(None))
    query = select(submissions.c.partition_date).where(submissions.c.state == State.UNCERTAIN, again)
    with ledger.database.read() as connection:
        return sorted(connection.execute(query.distinct()).scalars())
