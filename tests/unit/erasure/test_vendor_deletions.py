"""The register of what DeepXL must delete: nothing that was sent is missing, and it ends with a proof."""

from datetime import date
from typing import Any

import pytest

from kyc_pipeline.erasure import ledger_store
from kyc_pipeline.erasure.remove import erase
from kyc_pipeline.ledger.audit import AuditTrail, Author, problems, read_trail
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.leases import acquire_lease, release_lease
from kyc_pipeline.ledger.legal_holds import LegalHoldError, add_hold
from kyc_pipeline.ledger.models import AttemptResult, Claim, ClaimResult, State
from kyc_pipeline.ledger.vendor_deletions import (
    VendorRecord,
    confirm,
    read_register,
    register,
    verification_ids,
)
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from tests.unit.erasure.deployment import KEY, Deployment

DAY = "2024-09-08"
MARK = "Zq7mark"
PERSON = ("customerId", f"{MARK}-9999")
CALLS: dict[str, tuple[State, AttemptResult, dict[str, str]]] = {
    "completed": (
        State.COMPLETED,
        AttemptResult.RESPONDED,
        {"response": '{"result": {"verificationId": 77, "verified": true}}'},
    ),
    "second": (
        State.COMPLETED,
        AttemptResult.RESPONDED,
        {"response": '{"result": {"verificationId": "78", "verified": true}}'},
    ),
    "quarantined": (State.QUARANTINED, AttemptResult.CONTRACT_BROKEN, {"body": "{}"}),
    "uncertain": (State.UNCERTAIN, AttemptResult.MAYBE_PROCESSED, {"error": "lost"}),
    "refused": (State.REFUSED, AttemptResult.REFUSED, {"error": "422"}),
    "turned_away": (State.TURNED_AWAY, AttemptResult.TURNED_AWAY, {"error": "429"}),
    "failed": (State.FAILED, AttemptResult.NOT_PROCESSED, {"error": "no connection"}),
    "denied": (State.FAILED, AttemptResult.ACCESS_DENIED, {"error": "401"}),
}


def id_of(name: str) -> str:
    return f"{MARK}-{name}"


def fill(landing: Any, deployment: Deployment) -> None:
    """A submission of the person in every state, one that was never sent, and one of somebody else."""
    names = [*CALLS, "unsent"]
    rows = [landing.submission(id_of(name), 2 * n, dict([PERSON])) for n, name in enumerate(names)]
    landing.manifest(DAY, [*rows, landing.submission("a", 90, {"customerId": "other"})])
    deployment.ingest(DAY)
    content = {row["submission_id"]: row["content_sha256"] for row in deployment.rows()["submissions"]}
    lease = acquire_lease(deployment.ledger, DAY, "run")

    def call(key: str, state: State, result: AttemptResult, **more: str) -> None:
        claim = Claim(key, content[key], resend=True)
        assert commit(deployment.ledger, lease, [claim], []) == {claim.token}
        commit(deployment.ledger, lease, [], [ClaimResult(claim, state, result, billable=True, **more)])  # type: ignore[arg-type]

    call(id_of("second"), State.TURNED_AWAY, AttemptResult.TURNED_AWAY)
    for name, (state, result, more) in CALLS.items():
        call(id_of(name), state, result, **more)
    call("a", State.UNCERTAIN, AttemptResult.MAYBE_PROCESSED)
    release_lease(deployment.ledger, lease)


def registered(deployment: Deployment, **options: bool) -> dict[str | None, tuple[list[int], str | None]]:
    """Verification ids and the submission id in the clear, by the name of the submission."""
    key = Pseudonymizer(KEY)
    names = {key.tag("submissionId", id_of(name)): name for name in [*CALLS, "unsent"]}
    return {
        names[row.submission]: (verification_ids(row), row.submission_id)
        for row in read_register(deployment.ledger, **options)
    }


def trail_of(deployment: Deployment) -> AuditTrail:
    return AuditTrail(deployment.ledger, deployment.lake, Author("Ann"), lambda: Pseudonymizer(KEY))


EXPECTED = {"completed": ([77], None)} | {
    name: ([78] if name == "second" else [], id_of(name))
    for name in ("second", "quarantined", "uncertain", "refused", "turned_away")
}


def test_all_that_was_sent_stays_in_the_register_until_deepxl_deleted_it(
    landing: Any, any_deployment: Deployment
) -> None:
    deployment = any_deployment
    fill(landing, deployment)
    found = deployment.erase(*PERSON)
    assert found.verification_ids == [77, 78]
    assert registered(deployment) == EXPECTED
    assert set(deployment.places_with(MARK)) <= {"ledger.sqlite"}, "the register is the only place"

    done = {"on": date(2026, 11, 29), "who": "Ann", "evidence": "letter 12"}
    assert confirm(deployment.ledger, trail_of(deployment), verifications=[77, 5], **done) == 1  # type: ignore[arg-type]
    assert registered(deployment) == {name: each for name, each in EXPECTED.items() if name != "completed"}
    assert confirm(deployment.ledger, trail_of(deployment), request="other", **done) == 0  # type: ignore[arg-type]
    assert confirm(deployment.ledger, trail_of(deployment), **done) == 5  # type: ignore[arg-type]
    deployment.stores.ledger.purge()
    assert registered(deployment) == {}
    assert registered(deployment, with_confirmed=True) == {
        name: (ids, None) for name, (ids, _) in EXPECTED.items()
    }
    assert deployment.places_with(MARK) == []
    assert [entry.action for entry in read_trail(deployment.ledger)] == ["vendor-deletion"] * 2
    assert problems(deployment.lake, deployment.ledger)[0] == []


@pytest.mark.parametrize("step", ["2024-09-08 submissions", "ledger", "purge"])
@pytest.mark.usefixtures("filled")
def test_an_erasure_that_dies_forgets_nothing_that_was_sent(deployment: Deployment, step: str) -> None:

    def die(now: str) -> None:
        if now == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deployment.erase(*PERSON, progress=die)
    assert registered(deployment) == EXPECTED
    deployment.erase(*PERSON)
    assert registered(deployment) == EXPECTED


def test_a_confirmed_record_of_which_more_turns_up_is_open_again(deployment: Deployment) -> None:
    name = {"a": "p" * 64}

    def add(*ids: int, calls: int = 0, request: str | None = None) -> None:
        register(deployment.ledger, {"a": VendorRecord(set(ids), calls, 5)}, name, request)

    def rows() -> list[tuple[Any, ...]]:
        return [
            (row.verification_ids, row.submission_id, row.request, row.confirmed_on)
            for row in read_register(deployment.ledger, with_confirmed=True)
        ]

    add(2, calls=2, request="R-1")
    add(2)
    assert rows() == [("2", "a", "R-1", None)], "what is known stays known"
    on = date(2026, 11, 29)
    confirm(deployment.ledger, trail_of(deployment), on=on, who="Ann", evidence="letter", request="R-1")
    add(2, calls=2)
    assert rows() == [("2", None, "R-1", "2026-11-29")]
    add(1)
    assert rows() == [("1,2", None, "R-1", None)]


def test_a_hold_that_is_set_after_the_search_stops_the_erasure(
    landing: Any, any_deployment: Deployment
) -> None:
    deployment = any_deployment
    fill(landing, deployment)
    found = deployment.find(*PERSON)
    subject = deployment.stores.tombstone(*PERSON)
    add_hold(deployment.ledger, trail_of(deployment), PERSON, subject, "a lawsuit", "Ann")
    before = deployment.rows()
    with pytest.raises(LegalHoldError, match=r"legal hold on a .* since .*: a lawsuit"):
        erase(deployment.stores, found)
    assert deployment.rows() == before
    assert registered(deployment) == {}


def test_the_ledgers_rows_of_a_company_with_more_submissions_than_a_query_can_name(
    landing: Any, any_deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(landing, any_deployment)
    ids = [id_of(name) for name in CALLS]
    whole = any_deployment.stores.ledger.rows_of(ids, [])
    assert len(whole["submissions"]) == len(ids)
    monkeypatch.setattr(ledger_store, "_ROWS_PER_FETCH", 3)
    assert any_deployment.stores.ledger.rows_of(ids, []) == whole
