"""The audit trail: every decision leaves an entry, nothing changes one, and what somebody forces is found."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.ledger import transfer
from kyc_pipeline.ledger.audit import (
    AuditAction,
    AuditTrail,
    Author,
    note,
    operator,
    problems,
    read_note,
    read_trail,
)
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import InvariantBroken, Ledger
from kyc_pipeline.ledger.decisions import reopen, resolve_all_held, resolve_held
from kyc_pipeline.ledger.identity import bind
from kyc_pipeline.ledger.leases import acquire_lease, release_lease
from kyc_pipeline.ledger.models import AttemptResult, Claim, ClaimResult, State
from kyc_pipeline.privacy.erased import Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer

DATE = "2024-09-01"
KEY = Pseudonymizer("k" * 32)
PERSON = ("customerId", "Erika")


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger(ledger_url) as opened:
        yield opened


@pytest.fixture
def lake(tmp_path: Path, ledger: Ledger) -> Lake:
    lake = Lake(str(tmp_path / "lake"))
    bind(lake, ledger)
    return lake


def trail_of(ledger: Ledger, lake: Lake, reason: str | None = None, request: str | None = None) -> AuditTrail:
    return AuditTrail(ledger, lake, Author("Ann", "host-1", reason, request), lambda: KEY)


@pytest.fixture
def trail(ledger: Ledger, lake: Lake) -> AuditTrail:
    """With five entries, which the lake has seen."""
    trail = trail_of(ledger, lake, "asked for it", "R-7")
    for number in range(5):
        trail.record(AuditAction.ERASE, PERSON if number % 2 else None, {"rows": number})
    return trail


def test_an_entry_says_who_did_what_why_and_about_whom_without_naming_them(
    ledger: Ledger, trail: AuditTrail
) -> None:
    entries = list(read_trail(ledger))
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5]
    entry = entries[3]
    assert (entry.operator, entry.host, entry.action) == ("Ann", "host-1", "erase")
    assert (entry.reason, entry.request, json.loads(entry.details)) == ("asked for it", "R-7", {"rows": 3})
    # As in a tombstone, in all spellings of the value.
    assert entry.subject == Tombstone.of_tag(KEY, "customer_id", " Erika").pseudonym
    assert (entry.subject_name, entry.key_id) == ("customerid", KEY.key_id)
    assert entries[0].subject is None
    assert "Erika" not in str(entries)


def test_the_trail_is_sound_with_odd_texts_too(ledger: Ledger, lake: Lake) -> None:
    trail_of(ledger, lake, "é\0\ud800\u2028'", "№").record(AuditAction.EXPORT, ("n\0", "v"))
    assert problems(lake, ledger)[0] == []


@pytest.mark.parametrize("change", ["UPDATE audit SET reason = NULL", "DELETE FROM audit WHERE number = 5"])
def test_the_database_refuses_to_change_an_entry(ledger: Ledger, trail: AuditTrail, change: str) -> None:
    before = list(read_trail(ledger))
    with pytest.raises(InvariantBroken, match="the audit trail is never"), ledger.write() as connection:
        connection.execute(sa.text(change))
    assert list(read_trail(ledger)) == before


def force(ledger: Ledger, *changes: str) -> None:
    """Changes the trail as somebody with all rights could."""
    with ledger.write() as connection:
        if ledger.file is None:
            connection.execute(sa.text("ALTER TABLE audit DISABLE TRIGGER USER"))
        else:
            for name in ("audit_no_update", "audit_no_delete"):
                connection.execute(sa.text(f"DROP TRIGGER {name}"))
        for change in changes:
            connection.execute(sa.text(change))


COPY = (
    "INSERT INTO audit SELECT {number}, happened_at, operator, host, action, subject_name, subject, key_id, "
    "reason, request, details, previous_hash, hash FROM audit WHERE number = {of}"
)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        *(
            (
                [f"UPDATE audit SET {column} = '{value}' WHERE number = 4"],
                ["entry 4 was changed"],
            )
            for column, value in {
                "operator": "Bob",
                "host": "other",
                "action": "export",
                "subject_name": "companyid",
                "subject": "0" * 64,
                "key_id": "0",
                "reason": "another",
                "request": "R-8",
                "details": "{}",
                "happened_at": "1",
            }.items()
        ),
        (
            ["UPDATE audit SET hash = 'x' WHERE number = 4"],
            ["entry 4 was changed", "entry 5 does not follow entry 4: one was changed or inserted"],
        ),
        (["DELETE FROM audit WHERE number = 1"], ["entry 1 is missing"]),
        (["DELETE FROM audit WHERE number IN (2, 3)"], ["entries 2 to 3 are missing"]),
        (["DELETE FROM audit WHERE number = 5"], ["entry 5 is missing, which the lake has seen"]),
        (["DELETE FROM audit"], ["entries 1 to 5 are missing, which the lake has seen"]),
        (
            [
                "DELETE FROM audit WHERE number = 3",
                "UPDATE audit SET number = number - 1 WHERE number > 3 AND number < 5",
                "UPDATE audit SET number = 4 WHERE number = 5",
            ],
            [
                "entry 3 does not follow entry 2: one was changed or inserted",
                "entry 3 was changed",
                "entry 4 was changed",
                "entry 5 is missing, which the lake has seen",
            ],
        ),
        (
            [COPY.format(number=6, of=5)],
            ["entry 6 does not follow entry 5: one was changed or inserted", "entry 6 was changed"],
        ),
    ],
)
def test_what_somebody_forces_is_found(
    ledger: Ledger, lake: Lake, trail: AuditTrail, changes: list[str], found: list[str]
) -> None:
    assert problems(lake, ledger)[0] == []
    force(ledger, *changes)
    assert problems(lake, ledger)[0] == found


def test_entries_that_follow_do_not_hide_that_the_end_was_cut_off(
    ledger: Ledger, lake: Lake, trail: AuditTrail
) -> None:
    force(ledger, "DELETE FROM audit WHERE number > 3")
    for _ in range(4):
        trail.record(AuditAction.ERASE)
    assert problems(lake, ledger)[0] == ["entry 5 differs from the one that the lake has seen"]


def test_a_hash_that_somebody_kept_proves_that_the_trail_was_not_written_anew(
    ledger: Ledger, lake: Lake, trail: AuditTrail
) -> None:
    _, head = problems(lake, ledger)
    trail.record(AuditAction.ERASE)
    assert problems(lake, ledger, [head.hash])[0] == []
    assert problems(lake, ledger, ["0" * 64])[0] == [f"no entry has the hash {'0' * 64}"]


def test_many_processes_add_to_one_chain(ledger_url: str, ledger: Ledger, lake: Lake) -> None:
    def add(number: int) -> None:
        with Ledger(ledger_url) as mine:
            trail_of(mine, lake).record(AuditAction.ERASE, details={"writer": number})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(12)))
    assert problems(lake, ledger)[0] == []
    assert {json.loads(entry.details)["writer"] for entry in read_trail(ledger)} == set(range(12))


def lose(ledger: Ledger, state: State, *ids: str) -> None:
    lease = acquire_lease(ledger, DATE, "run")
    claims = [Claim(key, "c") for key in ids]
    commit(ledger, lease, claims, [])
    results = [ClaimResult(claim, state, AttemptResult.REFUSED, billable=True) for claim in claims]
    commit(ledger, lease, [], results)
    release_lease(ledger, lease)


def test_a_decision_and_its_entry_are_one_transaction(ledger: Ledger, lake: Lake) -> None:
    lose(ledger, State.UNCERTAIN, "a", "b", "c")
    lose(ledger, State.REFUSED, "d")
    trail = trail_of(ledger, lake, "see c")
    with pytest.raises(UsageError, match="must not name"):
        resolve_held(ledger, "c", "retry", "Ann", trail=trail)
    resolve_held(ledger, "a", "retry", "Ann", trail=trail)
    with pytest.raises(UsageError, match="must not name"):
        resolve_all_held(ledger, "abandon", "Ann", trail=trail)
    assert resolve_all_held(ledger, "abandon", "Ann", trail=trail_of(ledger, lake)) == ["b", "c"]
    reopen(ledger, "d", "the proxy was wrong", "Ann", trail=trail)
    assert [(entry.action, entry.subject) for entry in read_trail(ledger)] == [
        (action, Tombstone.of_tag(KEY, "submissionId", key).pseudonym)
        for action, key in (
            ("held-retry", "a"),
            ("held-abandon", "b"),
            ("held-abandon", "c"),
            ("reopen", "d"),
        )
    ]


def test_a_move_takes_the_trail_along(ledger: Ledger, lake: Lake, trail: AuditTrail, tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path / 'new.sqlite'}") as target:
        assert transfer.move(lake, ledger, target)["audit"] == 5
        trail_of(target, lake).record(AuditAction.ERASE)
        assert problems(lake, target)[0] == []


def test_a_restored_ledger_says_how_many_entries_it_lost(
    ledger: Ledger, lake: Lake, trail: AuditTrail, tmp_path: Path
) -> None:
    with Ledger(f"sqlite:///{tmp_path / 'restored.sqlite'}") as restored:
        trail_of(restored, lake).record_restore()
        [entry] = read_trail(restored)
        assert (entry.action, json.loads(entry.details)["lost"]) == ("ledger-restore", 5)
        assert problems(lake, restored)[0] == []


def test_nothing_is_created_to_read_a_trail(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "none"))
    with Ledger(f"sqlite:///{tmp_path / 'none.sqlite'}") as ledger:
        assert problems(lake, ledger) == ([], (0, "0" * 64))
        note(lake, ledger)
    assert read_note(lake) is None
    assert list(tmp_path.iterdir()) == []


def test_the_operator_is_the_one_of_the_settings_or_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    assert (operator(), operator("Bob"), Author("x").host) == ("ann", "Bob", socket.gethostname())

    def nobody() -> str:
        raise KeyError

    monkeypatch.setattr("getpass.getuser", nobody)
    assert operator().startswith("user ")
