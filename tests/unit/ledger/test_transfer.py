"""Moving, restoring and checking a ledger: what arrives, what is refused, what cannot be sent any more."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.lake.identity import read_lake_identity
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import STATE_KEY, VERIFICATION_RESPONSES, ResponsesState
from kyc_pipeline.ledger import transfer
from kyc_pipeline.ledger.audit import AuditAction, AuditTrail, Author, read_trail
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import InvariantBroken, Ledger, LedgerError, WrongLedger
from kyc_pipeline.ledger.decisions import reopen, resolve_held
from kyc_pipeline.ledger.identity import bind, check_bond, read_identity
from kyc_pipeline.ledger.leases import acquire_lease, mark_open_claims_uncertain, release_lease
from kyc_pipeline.ledger.models import AttemptResult, Claim, ClaimResult, State
from kyc_pipeline.ledger.pseudonym_key import use_key
from kyc_pipeline.ledger.queries import read_entries, read_responses, read_spend
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.vocabulary import Outcome
from tests.unit.killed_commit import kill_in_commit

DATE = "2024-09-01"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def ledger(tmp_path: Path, lake: Lake) -> Iterator[Ledger]:
    """A ledger in use: a response, a decision, a failed call; bound to the lake."""
    with Ledger(f"sqlite:///{tmp_path / 'old' / 'ledger.sqlite'}") as opened:
        bind(lake, opened)
        fill(opened)
        yield opened


def fill(ledger: Ledger) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    claims = [Claim(key, f"c-{key}") for key in "abc"]
    commit(ledger, lease, claims, [])
    completed, lost, refused = claims
    commit(
        ledger,
        lease,
        [],
        [
            ClaimResult(
                completed,
                State.COMPLETED,
                AttemptResult.RESPONDED,
                billable=True,
                latency_ms=0.1 + 0.2,
                response='{"result": "é"}',
            ),
            ClaimResult(lost, State.UNCERTAIN, AttemptResult.MAYBE_PROCESSED, billable=True, error="lost"),
            ClaimResult(refused, State.FAILED, AttemptResult.NOT_PROCESSED, billable=False),
        ],
    )
    release_lease(ledger, lease)
    resolve_held(ledger, "b", "retry", "somebody")


def test_a_move_takes_everything_and_leaves_nothing_to_use(
    lake: Lake, ledger: Ledger, postgres_url: str, tmp_path: Path
) -> None:
    before = read_responses(ledger, ["a", "b", "c"])
    with Ledger(postgres_url) as target, Ledger(f"sqlite:///{tmp_path / 'back.sqlite'}") as back:
        rows = transfer.move(lake, ledger, target)
        assert (rows["submissions"], rows["attempts"], rows["decisions"]) == (3, 3, 1)
        assert read_responses(target, ["a", "b", "c"]) == before
        bind(lake, target)
        resolve_held(target, "b", "abandon", "somebody else")  # takes the next id
        with pytest.raises(WrongLedger, match="was moved: set KYC_LEDGER_URL"):
            bind(lake, ledger)
        lease = acquire_lease(ledger, DATE, "run")
        with pytest.raises(WrongLedger, match="was moved"):
            commit(ledger, lease, [Claim("z", "c")], [])
        transfer.move(lake, target, back)
        bind(lake, back)
        assert read_responses(back, ["a", "c"]) == {key: before[key] for key in "ac"}


def test_a_move_into_a_ledger_with_content_changes_nothing(
    lake: Lake, ledger: Ledger, tmp_path: Path
) -> None:
    with Ledger(f"sqlite:///{tmp_path / 'other.sqlite'}") as other:
        fill(other)
        with pytest.raises(UsageError, match="is not empty"):
            transfer.move(lake, ledger, other)
        assert len(read_entries(other, ["a", "b", "c"])) == 3
    bind(lake, ledger)


def test_a_move_waits_for_no_run(lake: Lake, ledger: Ledger, tmp_path: Path) -> None:
    acquire_lease(ledger, DATE, "run-7")
    with Ledger(f"sqlite:///{tmp_path / 'new.sqlite'}") as target, pytest.raises(KycError, match="run-7"):
        transfer.move(lake, ledger, target)
    bind(lake, ledger)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_ledger_that_changes_while_it_is_moved_leaves_nothing_behind(
    lake: Lake, ledger: Ledger, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    digests = transfer._digests

    def decide_first(connection: Connection) -> dict[str, tuple[int, int]]:
        monkeypatch.setattr(transfer, "_digests", digests)
        resolve_held(ledger, "b", "abandon", "somebody else")
        return digests(connection)

    def then_decide(connection: Connection) -> dict[str, tuple[int, int]]:
        monkeypatch.setattr(transfer, "_digests", decide_first)  # once the source was read
        return digests(connection)

    url = postgres_url if kind == "postgres" else f"sqlite:///{tmp_path / 'new.sqlite'}"
    with Ledger(url) as target:
        monkeypatch.setattr(transfer, "_digests", then_decide)
        with pytest.raises(KycError, match="changed while it was copied"):
            transfer.move(lake, ledger, target)
        assert read_entries(target, ["a", "b", "c"]) == {}
        assert transfer.move(lake, ledger, target)["submissions"] == 3


@pytest.mark.parametrize("waits_for", ["advisory", "transactionid"])
def test_an_action_that_is_under_way_is_moved_too(
    lake: Lake,
    postgres_url: str,
    tmp_path: Path,
    until: Callable[[Callable[[], bool]], None],
    waits_for: str,
) -> None:
    """It began before the move, and ends while the move waits; SQLite has one writer anyway."""
    waiting = text(f"SELECT count(*) FROM pg_locks WHERE locktype = '{waits_for}' AND NOT granted")

    def is_waiting() -> bool:
        with source.read() as connection:
            return bool(connection.execute(waiting).scalar())

    with (
        Ledger(postgres_url) as source,
        Ledger(f"sqlite:///{tmp_path / 'new.sqlite'}") as target,
        ThreadPoolExecutor(1) as pool,
    ):
        bind(lake, source)
        trail = AuditTrail(source, lake, Author("Ann"), lambda: Pseudonymizer("k" * 32))
        with source.write() as connection:
            if waits_for == "transactionid":  # as a `rekey`, which ends with its entry
                use_key(connection, "new")
            else:
                trail.append(connection, AuditAction.RESET_LIMITS, [None])
            moving = pool.submit(transfer.move, lake, source, target)
            until(is_waiting)
            if waits_for == "transactionid":
                trail.append(connection, AuditAction.REKEY, [None])
        moving.result()
        assert [row.operator for row in read_trail(target)] == ["Ann"]


def test_a_killed_move_leaves_one_ledger_in_use(lake: Lake, ledger: Ledger, tmp_path: Path) -> None:
    """Killed at each of its transactions in turn: nothing is lost, and never two ledgers accept claims."""
    source, folder = Path(str(ledger.file)), tmp_path / "moves"
    ledger.close()
    code = (
        "import os, signal, sys\n"
        "from kyc_pipeline.lake.storage import Lake\n"
        "from kyc_pipeline.ledger import transfer\n"
        "from kyc_pipeline.ledger.database import Ledger\n"
        "left = int(sys.argv[4])\n"
        "check = Ledger._check_file\n"
        "def count(self):\n"
        "    global left\n"
        "    left -= 1\n"
        "    if not left: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    check(self)\n"
        "Ledger._check_file = count\n"
        "transfer.move(Lake(sys.argv[1]), Ledger(sys.argv[2]), Ledger(sys.argv[3]))\n"
    )
    for step in (2, 4, 6, 8):
        shutil.copytree(source.parent, folder / str(step))
        shutil.copytree(lake.root, folder / str(step) / "lake")
        here = Lake(str(folder / str(step) / "lake"))
        urls = [f"sqlite:///{folder / str(step) / name}" for name in ("ledger.sqlite", "new.sqlite")]
        arguments = [sys.executable, "-c", code, here.root, *urls, str(step)]
        done = subprocess.run(arguments, env={**os.environ}, check=False)
        usable = 0
        for url in urls:
            with Ledger(url) as either:
                try:
                    bind(here, either)
                    usable += len(read_entries(either, ["a", "b", "c"])) == 3
                except WrongLedger:
                    continue
        assert usable <= 1
        assert done.returncode in (0, -signal.SIGKILL)


class LosesResponse(Ledger):
    """Its second commit takes place, or does not; the connection breaks before the server's response."""

    commits = 0
    is_made = True

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        self.commits += 1
        if self.commits == 2 and not self.is_made:
            raise LedgerError("no connection to the server")
        with super().write() as connection:
            yield connection
        if self.commits == 2:
            raise LedgerError("no connection to the server")


@pytest.mark.parametrize("is_made", [True, False])
def test_a_move_whose_last_commit_is_in_doubt_leaves_one_ledger_to_use(
    lake: Lake, ledger: Ledger, postgres_url: str, *, is_made: bool
) -> None:
    with LosesResponse(postgres_url) as target:
        target.is_made = is_made
        with pytest.raises(LedgerError, match="no connection"):
            transfer.move(lake, ledger, target)
    with pytest.raises(WrongLedger, match="was moved: set KYC_LEDGER_URL"):
        bind(lake, ledger)
    with Ledger(postgres_url) as moved:
        if not is_made:
            with pytest.raises(WrongLedger, match="did not end: run `kyc-pipeline ledger restore`"):
                bind(lake, moved)
            transfer.declare_restored(lake, moved)
        bind(lake, moved)
        assert len(read_entries(moved, ["a", "b", "c"])) == 3


def responses(lake: Lake, **outcomes: str) -> None:
    rows = [
        {
            "submission_id": key,
            "outcome": outcome,
            "attempts": 2,
            "billable_calls": 1,
            "content_sha256": f"c-{key}",
            "response": f'{{"of": "{key}"}}' if outcome == Outcome.COMPLETED else None,
        }
        for key, outcome in sorted(outcomes.items())
    ]
    lake.write(VERIFICATION_RESPONSES, DATE, rows, {STATE_KEY: ResponsesState.COMPLETE})


def test_a_restore_takes_the_backup_and_what_the_lake_knows_besides(
    lake: Lake, ledger: Ledger, tmp_path: Path
) -> None:
    backup = tmp_path / "backup.sqlite"
    shutil.copy(str(ledger.file), backup)
    content = backup.read_bytes()
    responses(lake, a="completed", b="completed", c="failed", d="completed", e="not_attempted")
    Path(str(ledger.file)).unlink()
    ledger.close()
    with transfer.opened_backup(backup) as source:
        transfer.copy_backup(source, ledger)
    assert transfer.complete_from_lake(lake, ledger) == 3  # b was settled, c was sent, d was unknown
    transfer.declare_restored(lake, ledger)
    assert backup.read_bytes() == content
    states = {key: entry.state for key, entry in read_entries(ledger, list("abcde")).items()}
    assert states == {
        "a": State.COMPLETED,
        "b": State.COMPLETED,
        "c": State.TURNED_AWAY,
        "d": State.COMPLETED,
    }
    assert read_responses(ledger, ["d"])["d"][1]["response"] == '{"of": "d"}'
    assert read_spend(ledger, DATE).calls == 8  # the lake knows two of each
    with ledger.read() as connection:
        assert connection.execute(text("SELECT sum(calls) FROM calls_of_days")).scalar() == 8
    bind(lake, ledger)
    assert read_identity(ledger).restored_at is not None
    with Ledger(f"sqlite:///{backup}") as old, pytest.raises(WrongLedger, match="not the ledger of the lake"):
        check_bond(lake, old)


def test_a_backup_is_read_with_its_journal(lake: Lake, ledger: Ledger, tmp_path: Path) -> None:
    """It was copied after a run was killed in a commit."""
    backup = tmp_path / "backup.sqlite"
    shutil.copy(str(ledger.file), backup)
    kill_in_commit(backup)
    content = backup.read_bytes()
    with Ledger(f"sqlite:///{tmp_path / 'new.sqlite'}") as target:
        with transfer.opened_backup(backup) as source:
            rows = transfer.copy_backup(source, target)
        assert (rows["submissions"], rows["rate_limits"]) == (3, 0)
    assert backup.read_bytes() == content


def test_what_was_abandoned_stays_so_in_a_ledger_made_from_the_lake(lake: Lake, ledger: Ledger) -> None:
    responses(lake, z="abandoned")
    assert transfer.complete_from_lake(lake, ledger) == 1
    entry = read_entries(ledger, ["z"])["z"]
    assert (entry.outcome, entry.held) == (Outcome.ABANDONED, False)


@pytest.mark.parametrize("outcome", [Outcome.UNCERTAIN, Outcome.QUARANTINED, Outcome.COMPLETED])
def test_what_was_reopened_since_the_backup_has_its_new_outcome(
    lake: Lake, ledger_url: str, outcome: Outcome
) -> None:
    """Neither database lets a final outcome change without a decision."""
    with Ledger(ledger_url) as ledger:
        lease, claim = acquire_lease(ledger, DATE, "run"), Claim("a", "c-a")
        refusal = ClaimResult(claim, State.REFUSED, AttemptResult.REFUSED, billable=False)
        commit(ledger, lease, [claim], [])
        commit(ledger, lease, [], [refusal])
        responses(lake, a=outcome)
        assert transfer.complete_from_lake(lake, ledger) == 1
        assert transfer.complete_from_lake(lake, ledger) == 0
        entry = read_entries(ledger, ["a"])["a"]
        assert (entry.outcome, entry.decision) == (outcome, None)
        spend = read_spend(ledger, DATE)
        assert (spend.calls, spend.billable_calls) == (2, 1)


def test_a_call_that_was_in_flight_in_the_backup_has_its_outcome(lake: Lake, ledger: Ledger) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    commit(ledger, lease, [Claim("t", "c-t")], [])
    before = read_spend(ledger, DATE)
    row = {"submission_id": "t", "outcome": Outcome.FAILED, "attempts": 1, "billable_calls": 0}
    lake.write(VERIFICATION_RESPONSES, DATE, [row | {"content_sha256": "c-t"}])
    assert transfer.complete_from_lake(lake, ledger) == 1
    assert read_entries(ledger, ["t"])["t"].state is State.TURNED_AWAY
    after = read_spend(ledger, DATE)
    assert (after.calls, after.billable_calls) == (before.calls, before.billable_calls - 1)


def test_a_late_refusal_is_not_billed_in_a_restored_ledger(lake: Lake, ledger: Ledger) -> None:
    """In the backup the call is in doubt; its run had lost the lease."""
    before = read_spend(ledger, DATE)
    row = {"submission_id": "b", "outcome": Outcome.REFUSED, "attempts": 1, "billable_calls": 0}
    lake.write(VERIFICATION_RESPONSES, DATE, [row | {"content_sha256": "c-b"}])
    assert transfer.complete_from_lake(lake, ledger) == 1
    assert transfer.complete_from_lake(lake, ledger) == 0
    after = read_spend(ledger, DATE)
    assert (after.calls, after.billable_calls) == (before.calls, before.billable_calls - 1)


@pytest.mark.parametrize("was_reopened", [False, True])
@pytest.mark.parametrize("state", [ResponsesState.DISPATCHING, ResponsesState.COMPLETE])
def test_a_late_result_counts_unless_it_was_reopened(
    lake: Lake, ledger: Ledger, state: ResponsesState, *, was_reopened: bool
) -> None:
    """In the backup it is uncertain; in the lake it has a final outcome of the same call."""
    lease, claim = acquire_lease(ledger, DATE, "run"), Claim("q", "c-q")
    commit(ledger, lease, [claim], [])
    if was_reopened:
        refusal = ClaimResult(claim, State.REFUSED, AttemptResult.REFUSED, billable=False)
        commit(ledger, lease, [], [refusal])
        reopen(ledger, "q", "the photo was turned", "somebody")
    release_lease(ledger, lease)
    row = {"submission_id": "q", "outcome": Outcome.QUARANTINED, "attempts": 1, "billable_calls": 1}
    rows = [row | {"content_sha256": "c-q", "response": "[]"}]
    lake.write(VERIFICATION_RESPONSES, DATE, rows, {STATE_KEY: state})
    transfer.complete_from_lake(lake, ledger)
    transfer.complete_from_lake(lake, ledger)
    entry, response = read_responses(ledger, ["q"])["q"]
    expected = (State.UNCERTAIN, None) if was_reopened else (State.QUARANTINED, "[]")
    assert (entry.state, response["response"]) == expected


def test_an_adopted_call_is_billed_in_a_restored_ledger(lake: Lake, ledger: Ledger) -> None:
    """The backup has it as turned away; it had been processed."""
    lease, claim = acquire_lease(ledger, DATE, "run"), Claim("t", "c-t")
    commit(ledger, lease, [claim], [])
    turned_away = ClaimResult(claim, State.TURNED_AWAY, AttemptResult.TURNED_AWAY, billable=False)
    commit(ledger, lease, [], [turned_away])
    before = read_spend(ledger, DATE)
    row = {"submission_id": "t", "outcome": Outcome.COMPLETED, "attempts": 1, "billable_calls": 1}
    lake.write(VERIFICATION_RESPONSES, DATE, [row | {"content_sha256": "c-t", "response": "{}"}])
    assert transfer.complete_from_lake(lake, ledger) == 1
    after = read_spend(ledger, DATE)
    assert (after.calls, after.billable_calls) == (before.calls, before.billable_calls + 1)


@pytest.mark.parametrize("is_known_by", ["lake", "former ledger"])
def test_a_decision_that_was_changed_to_abandon_is_not_used(
    lake: Lake, ledger: Ledger, tmp_path: Path, is_known_by: str
) -> None:
    """The backup has `retry`."""
    backup = tmp_path / "backup.sqlite"
    shutil.copy(str(ledger.file), backup)
    resolve_held(ledger, "b", "abandon", "somebody else")
    with Ledger(f"sqlite:///{tmp_path / 'new.sqlite'}") as restored:
        with transfer.opened_backup(backup) as source:
            transfer.copy_backup(source, restored)
        if is_known_by == "lake":
            row = {"submission_id": "b", "outcome": Outcome.ABANDONED, "attempts": 1, "billable_calls": 1}
            lake.write(VERIFICATION_RESPONSES, DATE, [row | {"content_sha256": "c-b"}])
            assert transfer.complete_from_lake(lake, restored) == 1
        else:
            assert transfer.carry_over(lake, ledger, restored).abandoned == 1
            assert transfer.carry_over(lake, ledger, restored).abandoned == 0
        assert read_entries(restored, ["b"])["b"].outcome is Outcome.ABANDONED


def test_what_only_the_former_ledger_knows_as_abandoned_is_not_sent(
    lake: Lake, ledger: Ledger, tmp_path: Path
) -> None:
    """Two runs of its day were killed: the first one after its call, the second one before it wrote."""
    backup = tmp_path / "backup.sqlite"
    shutil.copy(str(ledger.file), backup)
    lease = acquire_lease(ledger, DATE, "run")
    commit(ledger, lease, [Claim("x", "c-x")], [])
    mark_open_claims_uncertain(ledger, lease)
    resolve_held(ledger, "x", "abandon", "somebody")
    with Ledger(f"sqlite:///{tmp_path / 'new.sqlite'}") as restored:
        with transfer.opened_backup(backup) as source:
            transfer.copy_backup(source, restored)
        transfer.complete_from_lake(lake, restored)
        assert transfer.carry_over(lake, ledger, restored).abandoned == 1
        assert transfer.carry_over(lake, ledger, restored).abandoned == 0
        assert read_responses(restored, ["x"]) == read_responses(ledger, ["x"])
        again = acquire_lease(restored, DATE, "run")
        assert not commit(restored, again, [Claim("x", "c-x", resend=True, by_policy=True)], [])


def test_the_backup_of_another_lake_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    other = Lake(str(tmp_path / "other"))
    with Ledger(f"sqlite:///{tmp_path / 'other.sqlite'}") as theirs:
        bind(other, theirs)
        with pytest.raises(WrongLedger, match="belongs to another lake"):
            transfer.check_backup(other, ledger)


def test_a_damaged_backup_is_not_restored(lake: Lake, ledger: Ledger, tmp_path: Path) -> None:
    content = bytearray(Path(str(ledger.file)).read_bytes())
    content[8192:] = bytes(len(content) - 8192)
    backup = tmp_path / "backup.sqlite"
    backup.write_bytes(content)
    with pytest.raises(KycError), transfer.opened_backup(backup) as source:
        transfer.check_backup(lake, source)


def test_a_rebuilt_lake_is_bound_again(lake: Lake, ledger: Ledger) -> None:
    shutil.rmtree(lake.root)
    with pytest.raises(WrongLedger, match="belongs to another lake"):
        bind(lake, ledger)
    responses(lake, z="completed")
    with pytest.raises(WrongLedger, match="shows 1 outcome"):
        transfer.bind_again(lake, ledger)
    responses(lake, a="completed")
    transfer.bind_again(lake, ledger)
    assert bind(lake, ledger).lake_id == read_lake_identity(lake).lake_id  # type: ignore[union-attr]


def test_a_result_without_its_claim_is_no_result(ledger_url: str) -> None:
    with Ledger(ledger_url) as ledger:
        lease = acquire_lease(ledger, DATE, "run")
        known, unknown = Claim("a", "c"), Claim("b", "c")
        commit(ledger, lease, [known], [])
        results = [
            ClaimResult(claim, State.COMPLETED, AttemptResult.RESPONDED, billable=True, response="{}")
            for claim in (known, unknown)
        ]
        with pytest.raises(InvariantBroken, match="took 1 of 2 results"):
            commit(ledger, lease, [], results)
        assert read_entries(ledger, ["a"])["a"].state is State.CLAIMED
        commit(ledger, lease, [], results[:1])
        commit(ledger, lease, [], results[:1])  # again, as after a lost connection
        assert read_entries(ledger, ["a"])["a"].state is State.COMPLETED


def test_a_claim_finds_its_row_or_is_none(tmp_path: Path) -> None:
    """A trigger stands for whatever changes a row between the question and the claim."""
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        lease = acquire_lease(ledger, DATE, "run")
        claim = Claim("a", "c")
        commit(ledger, lease, [claim], [])
        result = ClaimResult(claim, State.FAILED, AttemptResult.NOT_PROCESSED, billable=False)
        commit(ledger, lease, [], [result])
        with ledger.write() as connection:
            connection.execute(
                text(
                    "CREATE TRIGGER t BEFORE UPDATE OF claim_token ON submissions "
                    "BEGIN SELECT RAISE(IGNORE); END"
                )
            )
        with pytest.raises(InvariantBroken, match="took 0 of 1 claims"):
            commit(ledger, lease, [Claim("a", "c")], [])
        assert read_spend(ledger, DATE).calls == 1
