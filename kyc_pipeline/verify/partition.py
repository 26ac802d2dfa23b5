"""One partition in the lake and in the ledger: the work that is left, and the table of responses.

Both are read and compared in batches: a partition of 100,000 takes about twenty queries a pass, and hardly
more memory than one of 1,000.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal

import pyarrow as pa

from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import Lake, PartitionMissing, PartitionUnreadable
from kyc_pipeline.lake.tables import STATE_KEY, SUBMISSIONS, VERIFICATION_RESPONSES, ResponsesState
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.models import Decision, Entry, State
from kyc_pipeline.ledger.queries import read_entries, read_responses
from kyc_pipeline.vocabulary import Outcome

DIGEST_KEY: Final = "ledger_digest"
"""Footer key of a digest of what the ledger knew."""
_SCAN_BATCH: Final = 2000
_WORK_BATCH: Final = 1000
_ROW_GROUP: Final = 2000
_LISTED: Final = 20


class Action(Enum):
    """What a run has to do with a submission."""

    SEND = "send"
    """Never sent, or surely not processed: then with its present date and content."""
    RESEND = "resend"
    """Uncertain, and to be sent again unless a look-up finds it."""
    LOOK_UP = "look_up"
    """Uncertain and held: DeepXL's history may show it by now."""
    NOTHING = "nothing"
    CONFLICT = "conflict"
    """It may have been sent with another date or content: never send it again."""


def action(entry: Entry | None, date: str, content_sha256: str, policy: Literal["hold", "retry"]) -> Action:
    """What to do with a submission of partition `date` of which the ledger knows `entry`."""
    if entry is None or entry.state is State.FAILED:
        return Action.SEND
    if entry.partition_date != date or entry.content_sha256 != content_sha256:
        return Action.CONFLICT
    if entry.state not in (State.UNCERTAIN, State.CLAIMED) or entry.decision is Decision.ABANDON:
        return Action.NOTHING
    return Action.RESEND if entry.decision is Decision.RETRY or policy == "retry" else Action.LOOK_UP


def _outcome(entry: Entry, what: Action, date: str) -> Outcome:
    """The outcome on `date`; a call made under another date does not count here."""
    if what is Action.CONFLICT or entry.partition_date != date:
        return Outcome.NOT_ATTEMPTED
    return entry.outcome


def conflict_text(entry: Entry, date: str) -> str:
    """The one line about a conflict."""
    if entry.partition_date != date:
        known = f"is in the ledger under {entry.partition_date} and in submissions under {date}"
    else:
        known = f"was sent on {date} with other content than submissions has now"
    return f"submission {entry.submission_id} {known}: not sent; materialize submissions of {date} again"


@dataclass(slots=True)
class Scan:
    """A partition as it stands. `digest` differs if a row of the lake's table would."""

    submissions: int = 0
    actions: Counter[Action] = field(default_factory=Counter)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    held: int = 0
    held_ids: list[str] = field(default_factory=list)
    open_claims: int = 0
    conflicts: list[str] = field(default_factory=list)
    digest: str = ""

    def note(self, entry: Entry, what: Action, date: str) -> None:
        """Records conflicts, open claims and held submissions."""
        if what is Action.CONFLICT:
            if len(self.conflicts) < _LISTED:
                self.conflicts.append(conflict_text(entry, date))
            return
        self.open_claims += entry.state is State.CLAIMED
        if entry.held:
            self.held += 1
            if len(self.held_ids) < _LISTED:
                self.held_ids.append(entry.submission_id)

    @property
    def to_send(self) -> int:
        """Submissions that may be sent: the calls to make, retries aside."""
        return self.actions[Action.SEND] + self.actions[Action.RESEND]

    @property
    def conflict_count(self) -> int:
        """Submissions that may have been sent with another date or content."""
        return self.actions[Action.CONFLICT]

    @property
    def to_settle(self) -> int:
        """Submissions that need a call or a look-up."""
        return self.to_send + self.actions[Action.LOOK_UP]


def scan(lake: Lake, ledger: Ledger | None, date: str, policy: Literal["hold", "retry"]) -> Scan:
    """Compares the partition's submissions with the ledger (None: there is none yet)."""
    result = Scan()
    digest = hashlib.blake2b(digest_size=16)
    columns = ["submission_id", "content_sha256"]
    for batch in lake.batches(SUBMISSIONS, date, columns, _SCAN_BATCH):
        ids, contents = _strings(batch, "submission_id"), _strings(batch, "content_sha256")
        known = read_entries(ledger, ids) if ledger is not None else {}
        entries = [known.get(submission_id) for submission_id in ids]
        actions = [
            action(entry, date, content, policy) for entry, content in zip(entries, contents, strict=True)
        ]
        outcomes = [
            _outcome(entry, what, date) if entry is not None else Outcome.NOT_ATTEMPTED
            for entry, what in zip(entries, actions, strict=True)
        ]
        result.submissions += len(ids)
        # Counted by identity: an Enum's hash is slow.
        for what in Action:
            result.actions[what] += actions.count(what)
        for outcome in Outcome:
            result.outcomes[outcome] += outcomes.count(outcome)
        for entry, what in zip(entries, actions, strict=True):
            if entry is not None and what is not Action.NOTHING:
                result.note(entry, what, date)
        lines = [
            f"{submission_id} {content} {what.value} {entry and entry.updated_at}"
            for submission_id, content, what, entry in zip(ids, contents, actions, entries, strict=True)
        ]
        digest.update("\n".join(lines).encode())
    result.outcomes = +result.outcomes  # without the zeros
    result.digest = digest.hexdigest()
    return result


@dataclass(slots=True)
class Work:
    """A submission that a run has to settle, with its row of the lake."""

    row: Mapping[str, Any] = field(repr=False)
    action: Action
    updated_at: int
    """When the ledger last changed it (microseconds since the epoch); 0 for one never seen."""

    @property
    def submission_id(self) -> str:
        """The submission's id."""
        return str(self.row["submission_id"])


def work(lake: Lake, ledger: Ledger, date: str, policy: Literal["hold", "retry"]) -> Iterator[list[Work]]:
    """The work that is left, in batches, in the order of the lake."""
    for batch in lake.batches(SUBMISSIONS, date, batch_size=_WORK_BATCH):
        entries = read_entries(ledger, _strings(batch, "submission_id"))
        found = []
        for row in batch.to_pylist():
            entry = entries.get(row["submission_id"])
            what = action(entry, date, row["content_sha256"], policy)
            if what in (Action.SEND, Action.RESEND, Action.LOOK_UP):
                found.append(Work(row, what, entry.updated_at if entry else 0))
        if found:
            yield found


def is_current(lake: Lake, date: str, now: Scan) -> bool:
    """Whether the lake's partition agrees with the ledger, by its footer and by its rows: a damaged one is
    written again."""
    try:
        metadata = lake.metadata(VERIFICATION_RESPONSES, date)
        if metadata.get(STATE_KEY) != ResponsesState.COMPLETE or metadata.get(DIGEST_KEY) != now.digest:
            return False
        rows = lake.read(VERIFICATION_RESPONSES, date, ["submission_id", "outcome"])
    except (PartitionMissing, PartitionUnreadable):
        return False
    sent = lake.read(SUBMISSIONS, date, ["submission_id"]).sort_by("submission_id")
    return rows["submission_id"].equals(sent["submission_id"]) and (
        Counter(rows["outcome"].to_pylist()) == now.outcomes
    )


def write_responses(lake: Lake, ledger: Ledger, date: str, state: ResponsesState, digest: str = "") -> None:
    """Replaces the partition of `verification_responses`: one row per submission, sorted by id.

    `digest` comes from a scan made before; if anything changed since, the next run sees that it differs.
    `is_current` reads it only in a partition that is complete.
    """
    submissions = lake.read(SUBMISSIONS, date, ["submission_id", "content_sha256"]).sort_by("submission_id")
    metadata = {STATE_KEY: state, DIGEST_KEY: digest}
    try:
        with lake.writer(VERIFICATION_RESPONSES, date, metadata) as writer:
            for start in range(0, submissions.num_rows, _ROW_GROUP):
                part = submissions.slice(start, _ROW_GROUP).to_pylist()
                known = read_responses(ledger, [row["submission_id"] for row in part])
                writer.write([_response_row(row, known.get(row["submission_id"]), date) for row in part])
    except OSError as error:
        raise KycError(
            f"cannot write {VERIFICATION_RESPONSES.name} of {date} ({error.strerror}): "
            "every answer is in the ledger; run the partition again when there is room"
        ) from error


def _strings(batch: pa.RecordBatch, name: str) -> list[str]:
    return [str(value) for value in batch.column(name).to_pylist()]


def _response_row(
    submission: Mapping[str, str], known: tuple[Entry, Mapping[str, Any]] | None, date: str
) -> dict[str, Any]:
    row: dict[str, Any] = {
        **submission,
        "outcome": Outcome.NOT_ATTEMPTED,
        "attempts": 0,
        "billable_calls": 0,
    }
    if known is None:
        return row
    entry, response = known
    what = action(entry, date, submission["content_sha256"], "hold")
    if what is Action.CONFLICT:
        return row | {"error": conflict_text(entry, date)}
    outcome = _outcome(entry, what, date)
    return row if outcome is Outcome.NOT_ATTEMPTED else row | {"outcome": outcome, **response}
