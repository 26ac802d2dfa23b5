"""Group commits on both databases: how one change affects the others in its transaction."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from kyc_pipeline.ledger import writer as writing
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.database import ChangeRefused, Ledger, LedgerError
from kyc_pipeline.ledger.leases import acquire_lease
from kyc_pipeline.ledger.models import Adoption, AttemptResult, Claim, ClaimResult, Lease, State
from kyc_pipeline.ledger.queries import read_entries
from kyc_pipeline.ledger.writer import GroupWriter

DATE = "2024-09-01"
REFUSES_POISON = {
    "sqlite": [
        """
        CREATE TRIGGER no_poison BEFORE UPDATE ON submissions WHEN NEW.response LIKE '%poison%'
        BEGIN SELECT RAISE(ABORT, 'no'); END
        """
    ],
    "postgresql": [
        """
        CREATE FUNCTION no_poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.response LIKE '%poison%' THEN RAISE EXCEPTION USING ERRCODE = 'check_violation'; END IF;
            RETURN NEW;
        END $$
        """,
        "CREATE TRIGGER no_poison BEFORE UPDATE ON submissions FOR EACH ROW EXECUTE FUNCTION no_poison()",
    ],
}


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with Ledger(ledger_url) as opened:
        yield opened


def completed(claim: Claim, response: str) -> ClaimResult:
    return ClaimResult(claim, State.COMPLETED, AttemptResult.RESPONDED, billable=True, response=response)


async def settle_all(ledger: Ledger, responses: dict[str, str]) -> list[BaseException | None]:
    """Claims every id at once, then records every response at once; the error of each recording."""
    lease = await asyncio.to_thread(acquire_lease, ledger, DATE, "run")
    async with GroupWriter(ledger, lease, patience_seconds=0) as writer:
        claims = [writer.new_claim(key, "sha", resend=False) for key in responses]
        assert all(await asyncio.gather(*map(writer.claim, claims)))
        return await asyncio.gather(
            *(writer.record(completed(claim, responses[claim.submission_id])) for claim in claims),
            return_exceptions=True,
        )


def test_a_change_that_the_database_rejects_does_not_affect_the_others(ledger: Ledger) -> None:
    acquire_lease(ledger, "2024-01-01", "makes the tables")
    with ledger.write() as connection:
        for statement in REFUSES_POISON[connection.dialect.name]:
            connection.execute(sa.text(statement))
    responses = {f"s{number}": '{"n": 1}' for number in range(20)} | {"s7": "poison", "s13": "poison"}
    errors = asyncio.run(settle_all(ledger, responses))
    refused = {key for key, error in zip(responses, errors, strict=True) if isinstance(error, ChangeRefused)}
    assert refused == {"s7", "s13"}
    assert [error for error in errors if error is not None and not isinstance(error, ChangeRefused)] == []
    entries = read_entries(ledger, list(responses))
    assert {key for key, entry in entries.items() if entry.state is State.COMPLETED} == set(
        responses
    ) - refused
    assert {entries[key].state for key in refused} == {State.CLAIMED}


def test_a_claim_says_what_was_asked_for(tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        lease = acquire_lease(ledger, DATE, "run")
        writer = GroupWriter(ledger, lease, patience_seconds=0)
        claims = [
            writer.new_claim("a", "sha-a", resend=False),
            writer.new_claim("b", "sha-b", resend=True),
            writer.new_claim("b", "sha-b", resend=True, by_policy=True),
        ]
        another = GroupWriter(ledger, lease, patience_seconds=0).new_claim("c", "sha-c", resend=False)
    tokens = [f"{claims[0].token[:20]}{number:012x}" for number in range(3)]
    assert another.token not in tokens  # the processes of one run share its lease
    assert claims == [
        Claim("a", "sha-a", False, tokens[0], False),
        Claim("b", "sha-b", True, tokens[1], False),
        Claim("b", "sha-b", True, tokens[2], True),
    ]


def test_an_outage_is_waited_for_once_and_not_once_for_each_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ledger.sqlite"
    tried: list[int] = []

    def counting(
        ledger: Ledger, lease: Lease, claims: Sequence[Claim], results: object, day_budget: object
    ) -> frozenset[str]:
        tried.append(len(claims))
        return commit(ledger, lease, claims, [])

    async def claim_all(ledger: Ledger, lease: Lease) -> list[bool | BaseException]:
        async with GroupWriter(ledger, lease, patience_seconds=0) as writer:
            claims = [writer.new_claim(key, "sha", resend=False) for key in "abcd"]
            return await asyncio.gather(*map(writer.claim, claims), return_exceptions=True)

    monkeypatch.setattr(writing, "commit", counting)
    with Ledger(f"sqlite:///{file}", busy_timeout=0) as ledger:
        lease = acquire_lease(ledger, DATE, "run")
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            failed = asyncio.run(claim_all(ledger, lease))
        assert [type(error) for error in failed] == [LedgerError] * 4
        assert tried == [4]
        assert asyncio.run(claim_all(ledger, lease)) == [True] * 4
        assert tried == [4, 4]


def test_long_responses_are_recorded_in_several_transactions(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_MAX_CHARACTERS", 1000)
    recorded: list[int] = []

    def counting(
        ledger: Ledger,
        lease: Lease,
        claims: Sequence[Claim],
        results: Sequence[ClaimResult | Adoption],
        day_budget: object,
    ) -> frozenset[str]:
        recorded.append(len(results))
        return commit(ledger, lease, claims, results)

    monkeypatch.setattr(writing, "commit", counting)
    responses = {f"s{number}": "x" * 400 for number in range(7)} | {"long": "x" * 5000}
    assert asyncio.run(settle_all(ledger, responses)) == [None] * len(responses)
    assert sum(recorded) == len(responses)
    assert max(recorded) == 2
    with ledger.read() as connection:
        found = connection.execute(sa.text("SELECT submission_id, response FROM submissions"))
        kept = {row.submission_id: row.response for row in found}
    assert kept == responses
