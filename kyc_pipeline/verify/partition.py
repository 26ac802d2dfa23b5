"""One partition in the lake and in the ledger: the work left, and the table of responses.

Both stores are read and compared in batches: 100,000 submissions take about fifty queries of the ledger a
pass, and little more memory than 1,000. A run with calls makes five passes (plan, table before the first
call, work, table after the last, reconciliation), together 3 % of its processor time.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Final, Literal, TypeAlias, cast

import pyarrow as pa

from kyc_pipeline.errors import KycError, reason
from kyc_pipeline.lake.sent import UNCHANGED, SentContent, read_sent
from kyc_pipeline.lake.storage import Lake, PartitionMissing, PartitionUnreadable
from kyc_pipeline.lake.tables import STATE_KEY, SUBMISSIONS, VERIFICATION_RESPONSES, ResponsesState
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.models import Decision, Entry, State
from kyc_pipeline.ledger.queries import earlier_attempts, read_entries, read_responses, turned_away
from kyc_pipeline.ledger.times import to_datetime
from kyc_pipeline.verify.shard import WHOLE, Shard
from kyc_pipeline.vocabulary import Outcome
from kyc_pipeline.wording import run_day_again

DIGEST_KEY: Final = "ledger_digest"
"""Footer key of the digest of the ledger's entries from which the table was written."""
_SCAN_BATCH: Final = 2000
"""Also the rows of a row group of the table."""
_WORK_BATCH: Final = 1000
_MAX_LISTED: Final = 20

Policy: TypeAlias = Literal["hold", "retry"]
"""What to do with an uncertain submission without a decision: `DEEPXL_UNCERTAIN`."""


class Action(Enum):
    """What a run does with a submission."""

    SEND = "send"
    """Never sent, or surely not processed: send it with its present date and content."""
    RESEND = "resend"
    """Turned away, or uncertain with a decision: send it again if a look-up finds no record."""
    LOOK_UP = "look_up"
    """Uncertain and held: DeepXL's history may have it by now."""
    NOTHING = "nothing"
    CONFLICT = "conflict"
    """It may have been sent with another date or content: never send it again."""


def action(entry: Entry | None, date: str, content_sha256: str, policy: Policy) -> Action:
    """The action for a submission of partition `date` with this ledger entry, if any."""
    if entry is None or entry.state is State.FAILED:
        return Action.SEND
    if entry.state is State.TURNED_AWAY:
        return Action.RESEND
    if entry.partition_date != date or entry.content_sha256 != content_sha256:
        return Action.CONFLICT
    if entry.state not in (State.UNCERTAIN, State.CLAIMED) or entry.decision is Decision.ABANDON:
        return Action.NOTHING
    # The policy counts once: with two calls in doubt, it has been sent again already.
    by_policy = policy == "retry" and entry.calls_in_doubt <= 1
    return Action.RESEND if entry.decision is Decision.RETRY or by_policy else Action.LOOK_UP


def _outcome(entry: Entry | None, what: Action, date: str) -> Outcome:
    """The outcome on `date`; calls made under another date do not count here."""
    if entry is None or what is Action.CONFLICT or entry.partition_date != date:
        return Outcome.NOT_ATTEMPTED
    return entry.outcome


def conflict_text(entry: Entry, date: str) -> str:
    """The one-line description of a conflict."""
    if entry.partition_date != date:
        known = f"is in the ledger under {entry.partition_date} and in submissions under {date}"
    else:
        known = f"was sent on {date} with other content than submissions has now"
    return f"submission {entry.submission_id} {known}: not sent; {run_day_again(date)}"


@dataclass(slots=True)
class Scan:
    """The state of a partition. `digest` changes whenever a row of the lake's table would."""

    date: str
    policy: Policy
    submissions: int = 0
    actions: Counter[Action] = field(default_factory=Counter)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    held: int = 0
    open_claims: int = 0
    conflicts: list[str] = field(default_factory=list)
    _rows: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16), repr=False)
    _ids: Any = field(default_factory=hashlib.blake2b, repr=False)

    def add(self, ids: Sequence[str], contents: Sequence[str], entries: Mapping[str, Entry]) -> list[Action]:
        """Adds submissions with their ledger entries; returns their actions."""
        known = [entries.get(submission_id) for submission_id in ids]
        actions = [
            action(entry, self.date, content, self.policy)
            for entry, content in zip(known, contents, strict=True)
        ]
        outcomes = [_outcome(entry, what, self.date) for entry, what in zip(known, actions, strict=True)]
        self.submissions += len(ids)
        self.actions.update(actions)
        self.outcomes.update(outcomes)
        for entry, what in zip(known, actions, strict=True):
            if entry is not None and what is not Action.NOTHING:
                self._note(entry, what)
        lines = [
            f"{submission_id} {content} {what.value} {entry and entry.updated_at}"
            for submission_id, content, what, entry in zip(ids, contents, actions, known, strict=True)
        ]
        self._rows.update("\n".join(lines).encode())
        self._ids.update(_joined(ids))
        return actions

    def _note(self, entry: Entry, what: Action) -> None:
        """Records a conflict, an open claim or a held submission."""
        if what is Action.CONFLICT:
            if len(self.conflicts) < _MAX_LISTED:
                self.conflicts.append(conflict_text(entry, self.date))
            return
        self.open_claims += entry.state is State.CLAIMED
        self.held += entry.held

    @property
    def digest(self) -> str:
        """Digest of the submissions, their actions and their ledger entries."""
        return str(self._rows.hexdigest())

    @property
    def to_send(self) -> int:
        """Submissions that may be sent: the calls to make, without retries."""
        return self.actions[Action.SEND] + self.actions[Action.RESEND]

    @property
    def conflict_count(self) -> int:
        """Submissions that may have been sent with another date or content."""
        return self.actions[Action.CONFLICT]

    @property
    def to_settle(self) -> int:
        """Submissions that need a call or a look-up."""
        return self.to_send + self.actions[Action.LOOK_UP]

    @property
    def ids_digest(self) -> bytes:
        """Digest of the submissions' ids, in order."""
        return bytes(self._ids.digest())


def _strings(column: "pa.Array[Any] | pa.ChunkedArray[Any]") -> list[str]:
    return cast("list[str]", column.to_pylist())


def _joined(ids: Sequence[str]) -> bytes:
    return "".join(f"{submission_id}\n" for submission_id in ids).encode()


def scan(lake: Lake, ledger: Ledger | None, date: str, policy: Policy) -> Scan:
    """Compares the partition's submissions with the ledger (None if it does not exist yet)."""
    result = Scan(date, policy)
    for ids, contents in _submissions(lake, date):
        result.add(ids, contents, read_entries(ledger, ids) if ledger is not None else {})
    return result


def _submissions(lake: Lake, date: str) -> Iterator[tuple[list[str], list[str]]]:
    """Ids and content hashes of the partition's submissions, in batches, in the order of the lake."""
    for batch in lake.batches(SUBMISSIONS, date, ["submission_id", "content_sha256"], _SCAN_BATCH):
        yield _strings(batch["submission_id"]), _strings(batch["content_sha256"])


def present_outcomes(
    lake: Lake, ledger: Ledger, dates: Sequence[str]
) -> Iterator[tuple[str, str, Outcome, Entry | None]]:
    """The accepted submissions of `dates`: date, id, the outcome according to the ledger, and its entry.

    Unlike the lake's table, the ledger knows the calls of a run that was killed or could not write.
    """
    known = ledger if ledger.exists() else None
    for date in dates:
        if not lake.exists(SUBMISSIONS, date):
            continue
        for ids, contents in _submissions(lake, date):
            entries = read_entries(known, ids) if known is not None else {}
            for submission_id, content in zip(ids, contents, strict=True):
                entry = entries.get(submission_id)
                what = action(entry, date, content, "hold")
                yield date, submission_id, _outcome(entry, what, date), entry


class Standing(Enum):
    """What the calls of a submission so far allow."""

    CLEAR = "clear"
    """None was processed: send it."""
    TURNED_AWAY = "turned_away"
    """The last one was turned away: send it again if a look-up finds no record."""
    DECIDED = "decided"
    """One is in doubt, and a decision allows another: send it if a look-up finds no record of the first."""
    IN_DOUBT = "in_doubt"
    """One is in doubt. The policy may allow another if a look-up finds no record."""


STANDINGS: Final = {
    State.FAILED: Standing.CLEAR,
    State.TURNED_AWAY: Standing.TURNED_AWAY,
    State.UNCERTAIN: Standing.IN_DOUBT,
    State.CLAIMED: Standing.IN_DOUBT,
}
"""The standing of a submission that is not settled, without a decision."""


@dataclass(slots=True)
class Work:
    """A submission for the run to settle, with its row of the lake."""

    row: Mapping[str, Any] = field(repr=False)
    action: Action
    standing: Standing = Standing.CLEAR
    updated_at: int = 0
    """When the ledger last changed it (microseconds since the epoch); 0 without an entry."""
    first_sent: datetime | None = None
    """The first attempt, by this or an earlier run: a record cannot be older."""
    is_changed: bool = False
    """Whether the content is not the one that was sent."""
    sent: list[SentContent] = field(default_factory=list, repr=False)
    """The different contents that its attempts sent, this run's newest one last. A record is about one."""
    was_sent: bool = False
    """Whether this run has made a call for it."""

    def sending(self, sent: SentContent) -> None:
        """Notes what the next call sends: it is the last one of `sent`."""
        self.sent = [*(each for each in self.sent if each != sent), sent]

    @property
    def submission_id(self) -> str:
        """The submission's id."""
        return str(self.row["submission_id"])


def work(lake: Lake, ledger: Ledger, date: str, policy: Policy, shard: Shard = WHOLE) -> Iterator[list[Work]]:
    """The work left in `shard`, in batches, in the order of the lake."""
    for batch in lake.batches(SUBMISSIONS, date, batch_size=_WORK_BATCH):
        if shard != WHOLE:
            batch = batch.filter(pa.array(map(shard.has, _strings(batch["submission_id"])), pa.bool_()))
        entries = read_entries(ledger, _strings(batch["submission_id"]))
        found = []
        for row in batch.to_pylist():
            entry = entries.get(row["submission_id"])
            what = action(entry, date, row["content_sha256"], policy)
            if what in (Action.SEND, Action.RESEND, Action.LOOK_UP):
                found.append(_work(row, what, entry))
        earlier = earlier_attempts(ledger, [item.submission_id for item in found if item.updated_at])
        for item in found:
            if (known := earlier.get(item.submission_id)) is not None:
                item.first_sent = to_datetime(known.first_at)
                item.sent = [read_sent(text) for text in known.sent]
        if found:
            yield found


def _work(row: Mapping[str, Any], what: Action, entry: Entry | None) -> Work:
    if entry is None:
        return Work(row, what)
    standing = STANDINGS[entry.state]
    if standing is Standing.IN_DOUBT and entry.decision is Decision.RETRY:
        standing = Standing.DECIDED
    is_changed = entry.content_sha256 != row["content_sha256"]
    return Work(row, what, standing, entry.updated_at, is_changed=is_changed, sent=[UNCHANGED])


def withdrawn(lake: Lake, ledger: Ledger, date: str) -> list[Work]:
    """The partition's submissions that were turned away, and that are no longer in any manifest.

    They may have been billed: only a look-up can tell. None of them is sent.
    """
    left = turned_away(ledger, date)
    # The day itself first: usually it has them all. A row may also have moved to another day.
    for day in (date, *lake.dates(SUBMISSIONS)) if left else ():
        if left and lake.exists(SUBMISSIONS, day):
            for ids, _ in _submissions(lake, day):
                there = set(ids)
                left = {key: content for key, content in left.items() if key not in there}
    return [
        Work(
            {"submission_id": submission_id, "content_sha256": content},
            Action.LOOK_UP,
            Standing.TURNED_AWAY,
            is_changed=True,  # its row is gone, so no record can be compared with it
        )
        for submission_id, content in left.items()
    ]


def is_current(lake: Lake, date: str, now: Scan) -> bool:
    """Whether the lake's table agrees with the ledger, by its footer and its rows.

    A damaged table is not current, so the run replaces it.
    """
    try:
        metadata = lake.metadata(VERIFICATION_RESPONSES, date)
        if metadata.get(STATE_KEY) != ResponsesState.COMPLETE or metadata.get(DIGEST_KEY) != now.digest:
            return False
        ids, outcomes = hashlib.blake2b(), Counter[str]()
        for rows in lake.batches(VERIFICATION_RESPONSES, date, ["submission_id", "outcome"], _SCAN_BATCH):
            ids.update(_joined(_strings(rows["submission_id"])))
            outcomes.update(_strings(rows["outcome"]))
    except (PartitionMissing, PartitionUnreadable):
        return False
    return (ids.digest(), outcomes) == (now.ids_digest, now.outcomes)


def write_responses(
    lake: Lake,
    ledger: Ledger,
    date: str,
    state: ResponsesState,
    policy: Policy,
    confirm: Callable[[], None] = lambda: None,
) -> Scan:
    """Replaces the partition of `verification_responses`: one row per submission, in the same order.

    `confirm` is called just before the replacement, and raises if another run has the lease by then. Returns
    the scan of the ledger entries that it wrote; the footer has its digest.
    """
    result = Scan(date, policy)
    try:
        with lake.writer(VERIFICATION_RESPONSES, date, {STATE_KEY: state}, confirm=confirm) as writer:
            for ids, contents in _submissions(lake, date):
                known = read_responses(ledger, ids)
                entries = {submission_id: entry for submission_id, (entry, _) in known.items()}
                actions = result.add(ids, contents, entries)
                writer.write(
                    [
                        _response_row(submission_id, content, what, known.get(submission_id), date)
                        for submission_id, content, what in zip(ids, contents, actions, strict=True)
                    ]
                )
            writer.add_metadata({DIGEST_KEY: result.digest})
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            confirm()  # if the lease is lost, the next holder may have removed the draft
        raise KycError(
            f"cannot write {VERIFICATION_RESPONSES.name} of {date} ({reason(error)}): "
            f"every response is in the ledger; when there is room, {run_day_again(date)}"
        ) from error
    return result


def _response_row(
    submission_id: str,
    content_sha256: str,
    what: Action,
    known: tuple[Entry, Mapping[str, Any]] | None,
    date: str,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "submission_id": submission_id,
        "content_sha256": content_sha256,
        "outcome": Outcome.NOT_ATTEMPTED,
        "attempts": 0,
        "billable_calls": 0,
    }
    if known is None:
        return row
    entry, response = known
    if what is Action.CONFLICT:
        return row | {"error": conflict_text(entry, date)}
    outcome = _outcome(entry, what, date)
    return row if outcome is Outcome.NOT_ATTEMPTED else row | {"outcome": outcome, **response}
