"""The ledger on both databases: who may claim, what becomes of a claim, and what may be repeated."""

import dataclasses
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import kyc_pipeline.ledger
from kyc_pipeline.errors import UsageError
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import InvariantBroken, Ledger, LedgerError
from kyc_pipeline.ledger.decisions import resolve_held
from kyc_pipeline.ledger.leases import (
    PartitionBusy,
    acquire_lease,
    is_held,
    mark_open_claims_uncertain,
    release_lease,
    renew_lease,
)
from kyc_pipeline.ledger.models import Adoption, AttemptResult, Claim, ClaimResult, Judgement, Lease, State
from kyc_pipeline.ledger.process import ProcessIdentity
from kyc_pipeline.ledger.queries import read_entries, read_responses, read_spend
from kyc_pipeline.ledger.schema import HEAD_REVISION, attempts, leases, metadata, submissions
from kyc_pipeline.ledger.times import to_datetime

DATE = "2024-09-01"


def completed(claim: Claim, response: str = "{}") -> ClaimResult:
    return ClaimResult(claim, State.COMPLETED, AttemptResult.RESPONDED, billable=True, response=response)


def lost(claim: Claim) -> ClaimResult:
    return ClaimResult(claim, State.UNCERTAIN, AttemptResult.MAYBE_PROCESSED, billable=True, error="lost")


def refused(claim: Claim) -> ClaimResult:
    return ClaimResult(claim, State.FAILED, AttemptResult.NOT_PROCESSED, billable=False)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger(ledger_url) as opened:
        yield opened


@pytest.mark.usefixtures("real_migrations")
def test_many_processes_can_open_it_at_once(ledger_url: str) -> None:
    ledgers = [Ledger(ledger_url) for _ in range(6)]
    errors: list[Exception] = []

    def open_it(number: int) -> None:
        try:
            acquire_lease(ledgers[number], f"2024-09-0{number + 1}", "run")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ledger in ledgers:
        ledger.close()
    assert errors == []


@pytest.mark.usefixtures("real_migrations")
def test_the_migrations_make_the_schema(ledger: Ledger) -> None:
    acquire_lease(ledger, DATE, "run")
    with ledger.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == HEAD_REVISION
    config = Config()
    config.set_main_option("script_location", str(Path(kyc_pipeline.ledger.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD_REVISION


def contents(ledger: Ledger) -> tuple[list[str], str, list[str]]:
    """What a new ledger contains: every object's SQL, the revision, and its id."""
    with ledger.read() as connection:
        objects = connection.execute(sa.text("SELECT coalesce(sql, name) FROM sqlite_master ORDER BY name"))
        revision = connection.execute(sa.text("SELECT version_num FROM alembic_version"))
        identity = connection.execute(sa.text("SELECT ledger_id FROM identity"))
        return list(objects.scalars()), revision.scalar_one(), list(identity.scalars())


def test_the_ledgers_of_the_tests_are_those_of_the_migrations(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def made(number: int) -> tuple[list[str], str, list[str]]:
        with Ledger(f"sqlite:///{tmp_path / str(number)}") as ledger:
            return contents(ledger)

    quick = [made(number) for number in range(3)]
    request.getfixturevalue("real_migrations")
    ledgers = [*quick, made(3)]
    assert len(ledgers[0][0]) > 20
    assert [each[:2] for each in ledgers] == [ledgers[0][:2]] * 4
    assert len({key for _, _, ids in ledgers for key in ids}) == sum(len(ids) for _, _, ids in ledgers) == 4


@pytest.mark.parametrize(
    ("state", "change", "why"),
    [
        ("completed", "UPDATE submissions SET state = 'failed'", "a completed submission stays completed"),
        ("refused", "UPDATE submissions SET state = 'claimed'", "a final outcome changes only by a decision"),
        ("quarantined", "UPDATE submissions SET state = 'uncertain'", "a final outcome changes only by"),
        ("claimed", "UPDATE submissions SET claim_token = 'another'", "a submission has one open claim"),
        ("failed", "DELETE FROM attempts", "no attempt is ever removed"),
    ],
)
def test_the_database_refuses_what_must_never_happen(
    ledger: Ledger, state: str, change: str, why: str
) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    claim = Claim("a", "c")
    commit(ledger, lease, [claim], [])
    if state != "claimed":
        commit(ledger, lease, [], [ClaimResult(claim, State(state), AttemptResult.REFUSED, billable=False)])
    with pytest.raises(InvariantBroken, match=why), ledger.write() as connection:
        connection.execute(sa.text(change))
    assert read_entries(ledger, ["a"])["a"].state is State(state)
    assert read_spend(ledger, DATE).calls == 1


def test_a_ledger_of_a_newer_version_is_not_touched(ledger: Ledger) -> None:
    acquire_lease(ledger, DATE, "run")
    with ledger.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    ledger.close()
    with pytest.raises(LedgerError, match="upgrade kyc-pipeline"):
        acquire_lease(ledger, DATE, "run")


def test_a_sqlite_ledger_is_private(tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path / 'deep' / 'ledger.sqlite'}") as ledger:
        lease = acquire_lease(ledger, DATE, "run")
        commit(ledger, lease, [Claim("a", "c")], [])
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deep").iterdir()}
    assert modes == {0o600}


def test_exists_creates_nothing(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'deep' / 'ledger.sqlite'}")
    assert not ledger.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "sqlite://",
        "sqlite://data/ledger.sqlite",
        "sqlite:///:memory:",
        "mysql://u:secret@h/d",
        "postgresql://u:secret@h/d",
        "postgresql+psycopg://u:secret@h:port/d",
    ],
)
def test_a_wrong_url_is_a_usage_error_that_does_not_show_it(url: str) -> None:
    with pytest.raises(UsageError, match="KYC_LEDGER_URL") as raised:
        Ledger(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://kyc:secret@127.0.0.1:9/kyc?connect_timeout=1",
        "postgresql+psycopg://127.0.0.1:9/kyc?user=kyc&password=secret&sslpassword=secret&connect_timeout=1",
    ],
)
def test_the_password_never_shows(url: str) -> None:
    ledger = Ledger(url, away_seconds=0)
    assert "secret" not in repr(ledger)
    with pytest.raises(LedgerError) as raised:
        acquire_lease(ledger, DATE, "run")
    ledger.close()
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_claim_is_won_once(ledger: Ledger) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    first, second = Claim("a", "c"), Claim("a", "c")
    assert commit(ledger, lease, [first, second], []) == {first.token}
    assert commit(ledger, lease, [second], []) == frozenset()
    # The same claim once more, as after a commit whose reply was lost: it is won, and counts once.
    assert commit(ledger, lease, [first], []) == {first.token}
    assert read_spend(ledger, DATE).calls == 1


def test_results_may_be_repeated(ledger: Ledger) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    claim = Claim("a", "c")
    commit(ledger, lease, [claim], [])
    for _ in range(2):
        commit(ledger, lease, [], [completed(claim)])
    assert read_spend(ledger, DATE) == dataclasses.replace(
        read_spend(ledger, DATE), calls=1, billable_calls=1
    )
    assert read_entries(ledger, ["a"])["a"].state is State.COMPLETED


@pytest.mark.parametrize("state", [State.COMPLETED, State.REFUSED, State.QUARANTINED, State.UNCERTAIN])
def test_a_settled_submission_is_not_claimed_again(ledger: Ledger, state: State) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    claim = Claim("a", "c")
    commit(ledger, lease, [claim], [])
    commit(ledger, lease, [], [ClaimResult(claim, state, AttemptResult.RESPONDED, billable=True)])
    assert commit(ledger, lease, [Claim("a", "c")], []) == frozenset()
    assert commit(ledger, lease, [Claim("a", "c", resend=True)], []) == frozenset()
    resend = Claim("a", "c", resend=True, by_policy=True)
    expected = {resend.token} if state is State.UNCERTAIN else set()
    assert commit(ledger, lease, [resend], []) == expected


@pytest.mark.parametrize("state", [State.CLAIMED, State.COMPLETED, State.REFUSED, State.UNCERTAIN])
def test_a_submission_that_may_have_been_sent_keeps_date_and_content(ledger: Ledger, state: State) -> None:
    lease, other = acquire_lease(ledger, DATE, "run"), acquire_lease(ledger, "2024-09-02", "run")
    claim = Claim("a", "c")
    commit(ledger, lease, [claim], [])
    if state is not State.CLAIMED:
        commit(ledger, lease, [], [ClaimResult(claim, state, AttemptResult.RESPONDED, billable=True)])
    assert commit(ledger, lease, [Claim("a", "other", resend=True)], []) == frozenset()
    assert commit(ledger, other, [Claim("a", "c", resend=True)], []) == frozenset()
    assert read_entries(ledger, ["a"])["a"][1:4] == (DATE, "c", state)


def test_a_submission_that_was_not_processed_takes_its_new_date_and_content(ledger: Ledger) -> None:
    lease, other = acquire_lease(ledger, DATE, "run"), acquire_lease(ledger, "2024-09-02", "run")
    first = Claim("a", "c")
    commit(ledger, lease, [first], [])
    commit(ledger, lease, [], [refused(first)])
    second = Claim("a", "other")
    assert commit(ledger, other, [second], []) == {second.token}
    assert read_entries(ledger, ["a"])["a"][1:4] == ("2024-09-02", "other", State.CLAIMED)
    # It belongs to the other day now: a run of the first day can neither claim nor release it.
    assert commit(ledger, lease, [Claim("a", "c")], []) == frozenset()
    assert release_lease(ledger, lease) == 0
    commit(ledger, other, [], [completed(second)])
    assert read_spend(ledger, "2024-09-02").calls == 2


def test_one_commit_takes_several_adopted_records(ledger: Ledger) -> None:
    """As the writer commits them after a run was turned away."""
    lease, claims = acquire_lease(ledger, DATE, "run"), [Claim(key, "c") for key in "ab"]
    commit(ledger, lease, claims, [])
    turned_away = [
        ClaimResult(each, State.TURNED_AWAY, AttemptResult.TURNED_AWAY, billable=False) for each in claims
    ]
    commit(ledger, lease, [], turned_away)
    found = [Adoption(key, DATE, "c", 200, datetime.now(UTC), "{}") for key in "ab"]
    commit(ledger, lease, [], found)
    assert {entry.state for entry in read_entries(ledger, ["a", "b"]).values()} == {State.COMPLETED}
    assert read_spend(ledger, DATE).billable_calls == 2


def test_two_days_claim_the_same_failed_submissions_at_once(ledger_url: str) -> None:
    ids = [f"s-{number:02}" for number in range(30)]
    with Ledger(ledger_url) as one, Ledger(ledger_url) as two:
        first = acquire_lease(one, DATE, "run-1")
        claims = [Claim(key, "c") for key in ids]
        commit(one, first, claims, [])
        commit(one, first, [], [refused(claim) for claim in claims])
        second = acquire_lease(two, "2024-09-02", "run-2")
        won: list[frozenset[str]] = []
        start = threading.Barrier(2)

        def claim_all(ledger: Ledger, lease: Lease, order: list[str]) -> None:
            start.wait()
            won.append(commit(ledger, lease, [Claim(key, "c") for key in order], []))

        threads = [
            threading.Thread(target=claim_all, args=arguments)
            for arguments in ((one, first, ids), (two, second, ids[::-1]))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 2
        assert sorted(map(len, won)) == [0, 30]


def test_a_commit_and_a_takeover_do_not_deadlock(ledger_url: str) -> None:
    with Ledger(ledger_url) as one, Ledger(ledger_url) as two:
        lease = acquire_lease(one, DATE, "run")
        first, second = Claim("a", "c"), Claim("b", "c")
        commit(one, lease, [first], [])
        with ThreadPoolExecutor(1) as pool, two.write() as connection:
            # As a takeover does: lock the lease, then mark the open claims.
            assert is_held(connection, lease)
            committing = pool.submit(commit, one, lease, [second], [completed(first)])
            time.sleep(0.5)  # until the commit waits for a lock
            connection.execute(sa.update(submissions).values(updated_at=1))
        assert committing.result() == {second.token}


def test_an_expired_lease_is_taken_and_its_claims_become_uncertain(ledger_url: str) -> None:
    with Ledger(ledger_url, lease_seconds=0) as hasty, Ledger(ledger_url) as ledger:
        old = acquire_lease(hasty, DATE, "old")
        claims = [Claim("a", "c"), Claim("b", "c"), Claim("d", "c")]
        commit(hasty, old, claims, [])
        new = acquire_lease(ledger, DATE, "new")
        entries = read_entries(ledger, ["a", "b", "d"])
        assert {entry.state for entry in entries.values()} == {State.UNCERTAIN}
        assert not renew_lease(hasty, old)
        # The old run is not dead after all. It cannot claim, but its responses count.
        assert commit(hasty, old, [Claim("e", "c")], [completed(claims[0])]) == frozenset()
        assert read_entries(ledger, ["a", "b"])["a"].state is State.COMPLETED
        assert read_entries(ledger, ["a", "b"])["b"].state is State.UNCERTAIN
        # A late failure of the old call says nothing about the newer call.
        again = Claim("b", "c", resend=True, by_policy=True)
        commit(ledger, new, [again], [])
        commit(hasty, old, [], [refused(claims[1])])
        assert read_entries(ledger, ["b"])["b"].state is State.CLAIMED
        release_lease(hasty, old)
        with pytest.raises(PartitionBusy):
            acquire_lease(ledger, DATE, "third")


def turn_away(ledger: Ledger, lease: Lease) -> None:
    claim = Claim("a", "c", resend=True)
    assert commit(ledger, lease, [claim], [])
    result = ClaimResult(claim, State.TURNED_AWAY, AttemptResult.TURNED_AWAY, billable=False)
    commit(ledger, lease, [], [result])


def test_a_late_look_up_does_not_make_a_newer_call_unsent(ledger_url: str) -> None:
    """Since the look-up found no record, another run has sent the submission, for this day or another."""
    later = "2024-09-02"
    with Ledger(ledger_url, lease_seconds=0) as ledger:
        old = acquire_lease(ledger, DATE, "old")
        turn_away(ledger, old)
        new, other = acquire_lease(ledger, DATE, "new"), acquire_lease(ledger, later, "other")
        turn_away(ledger, new)
        states = []
        for lease, date in ((old, DATE), (new, DATE), (other, later)):
            if lease is new:
                turn_away(ledger, other)
            commit(ledger, lease, [], [Judgement("a", date, "c", State.FAILED, "no record")])
            states.append(read_entries(ledger, ["a"])["a"].state)
        assert states == [State.TURNED_AWAY, State.TURNED_AWAY, State.FAILED]


def test_the_lease_of_a_live_process_is_kept_and_its_holder_named(ledger: Ledger) -> None:
    lease = acquire_lease(ledger, DATE, "run-1")
    assert renew_lease(ledger, lease)
    with pytest.raises(PartitionBusy, match="run-1"):
        acquire_lease(ledger, DATE, "run-2")
    acquire_lease(ledger, "2024-09-02", "run-2")
    release_lease(ledger, lease)
    acquire_lease(ledger, DATE, "run-3")


def test_a_reused_process_id_is_another_process(ledger: Ledger) -> None:
    acquire_lease(ledger, DATE, "run-1")
    with ledger.write() as connection:
        connection.execute(sa.update(leases).values(pid_started="1"))
    assert acquire_lease(ledger, DATE, "run-2").run_id == "run-2"
    # A process on another machine cannot be checked: its lease has to expire.
    with ledger.write() as connection:
        connection.execute(sa.update(leases).values(pid_started="1", machine="another", host="far"))
    with pytest.raises(PartitionBusy, match="on far"):
        acquire_lease(ledger, DATE, "run-3")


def test_this_process_is_alive() -> None:
    assert not ProcessIdentity.current().is_surely_dead()
    assert dataclasses.replace(ProcessIdentity.current(), pid=2**22 + 1).is_surely_dead()


def test_times_are_kept_to_the_microsecond(ledger: Ledger) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    claim = Claim("a", "c")
    commit(ledger, lease, [claim], [])
    sent = datetime(2024, 9, 1, 12, 0, 0, 123_457, tzinfo=UTC)
    timed = dataclasses.replace(
        completed(claim), requested_at=sent, responded_at=sent + timedelta(seconds=2), latency_ms=1999.5
    )
    commit(ledger, lease, [], [timed])
    row = read_responses(ledger, ["a"])["a"][1]
    assert (row["requested_at"], row["responded_at"]) == (1_725_192_000_123_457, 1_725_192_002_123_457)
    assert row["latency_ms"] == 1999.5
    assert to_datetime(row["requested_at"]) == sent


def test_odd_texts_and_large_numbers_are_kept(ledger: Ledger) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    claim = Claim("a", "c")
    commit(ledger, lease, [claim], [])
    text = '{"result": {"verificationId": 99999999999999999999, "x": "\u00e9\U0001f600\\u0000"}}' * 20_000
    commit(ledger, lease, [], [completed(claim, text)])
    assert read_responses(ledger, ["a", "unknown"])["a"][1]["response"] == text


def test_one_commit_may_hold_two_calls_of_a_submission(ledger: Ledger) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    first = Claim("a", "content")
    commit(ledger, lease, [first], [])
    commit(ledger, lease, [], [refused(first)])
    second = Claim("a", "content")
    commit(ledger, lease, [second], [])
    text = '{"quoted": "\\"\\\\ud800 \u20ac"}'
    other = Claim("b", "content")
    commit(ledger, lease, [other], [])
    commit(ledger, lease, [], [lost(second), lost(other), completed(second, text), completed(first, "late")])
    known = read_responses(ledger, ["a", "b", "c"])
    assert known["a"][0].state is State.COMPLETED
    assert (known["a"][1]["response"], known["a"][1]["attempts"]) == (text, 2)
    assert known["b"][0].state is State.UNCERTAIN
    assert "c" not in known


def bodies(ledger: Ledger, submission_id: str) -> list[tuple[str | None, str | None]]:
    """Text and error that the history keeps, by attempt."""
    columns = attempts.c.body, attempts.c.error
    query = sa.select(*columns).where(attempts.c.submission_id == submission_id).order_by(attempts.c.number)
    with ledger.read() as connection:
        return [tuple(row) for row in connection.execute(query)]


def test_a_second_response_is_kept_in_the_history(ledger: Ledger) -> None:
    """A run was taken over, and its call got a response after all."""
    old = acquire_lease(ledger, DATE, "old")
    first, second, third = (Claim("a", "c", resend=True) for _ in range(3))
    for claim in (first, second, third):
        commit(ledger, old, [claim], [])
        assert mark_open_claims_uncertain(ledger, old) == 1
        resolve_held(ledger, "a", "retry", "operator")
    for _ in range(2):  # a commit whose reply was lost is repeated
        commit(ledger, old, [], [completed(second, "of the second"), completed(first, "of the first")])
    broken = ClaimResult(
        third, State.QUARANTINED, AttemptResult.CONTRACT_BROKEN, True, response="of the third", error="odd"
    )
    commit(ledger, old, [], [broken])
    entry, response = read_responses(ledger, ["a"])["a"]
    assert (entry.state, response["response"]) == (State.COMPLETED, "of the second")
    message = "a second response: the submission already had one"
    assert bodies(ledger, "a") == [
        ("of the first", message),
        (None, None),
        ("of the third", f"{message}; odd"),
    ]


def test_a_quarantined_response_is_kept_when_a_sound_one_replaces_it(ledger: Ledger) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    first, second = (Claim("a", "c", resend=True) for _ in range(2))
    commit(ledger, lease, [first], [])
    assert mark_open_claims_uncertain(ledger, lease) == 1
    resolve_held(ledger, "a", "retry", "operator")
    commit(ledger, lease, [second], [])
    broken = ClaimResult(second, State.QUARANTINED, AttemptResult.CONTRACT_BROKEN, True, response="<html>")
    commit(ledger, lease, [], [broken])
    commit(ledger, lease, [], [completed(first, "sound")])
    _, response = read_responses(ledger, ["a"])["a"]
    assert response["response"] == "sound"
    assert bodies(ledger, "a")[1][0] == "<html>"


def test_text_that_a_database_cannot_store_is_stored_as_its_escape(ledger: Ledger) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    claim = Claim("s-1", "0" * 64, False, "t-1")
    commit(ledger, lease, [claim], [])
    commit(ledger, lease, [], [completed(claim, '"a\ud800\0b\\""')])
    _, response = read_responses(ledger, ["s-1"])["s-1"]
    assert '"a\\ud800\\u0000b\\""' in response.values()
