"""Retention: what is due, what is kept, and what the input of relationships must look like."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from kyc_pipeline.erasure.rejected import forget_rejected
from kyc_pipeline.erasure.relationships import Relationships
from kyc_pipeline.erasure.remove import delete_documents, erase
from kyc_pipeline.erasure.retention import Plan, RetentionPeriods, make_plan
from kyc_pipeline.errors import KycError
from kyc_pipeline.ledger.audit import AuditTrail, Author
from kyc_pipeline.ledger.legal_holds import LegalHoldError, add_hold
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from tests.unit.erasure.deployment import KEY, Deployment

DAY = "2024-09-08"
TODAY = date(2030, 1, 1)


def write(landing: Path, *rows: str, name: str = "a.csv") -> None:
    folder = landing / "relationships"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")


def ends(landing: Path, tags: dict[str, str]) -> date | None:
    return Relationships(landing, Pseudonymizer(KEY))(tags)


@pytest.mark.parametrize(
    ("tags", "end"),
    [
        ({"customerId": "1"}, date(2025, 1, 1)),
        ({"customer_id": " 1"}, date(2025, 1, 1)),
        ({"customerId": "2"}, date(2024, 12, 31)),
        ({"customerId": "3"}, None),
        ({"customerId": "unknown"}, None),
        ({"customerId": "1", "companyId": "ended"}, date(2026, 1, 1)),
        ({"customerId": "1", "companyId": "goes on"}, None),
        ({"customerId": "1", "companyId": "unknown"}, date(2025, 1, 1)),
        ({"submissionId": "s-1"}, date(2025, 5, 5)),
        ({"submissionId": "S-1"}, None),
        ({}, None),
    ],
)
def test_a_relationship_ended_when_the_last_of_all_that_name_it_did(
    tmp_path: Path, tags: dict[str, str], end: date | None
) -> None:
    write(
        tmp_path,
        "\ufefftag.customerId,note,tag.companyId,ended_at,submission_id",
        "1,,,2024-03-01,",
        "1,,,2025-01-01,",
        "2,x,,2025-01-01T01:00:00+02:00,",
        "3,,,2024-01-01,",
        ",,goes on,,",
        ",,ended,2026-01-01,",
        ",,,2025-05-05,s-1",
    )
    write(tmp_path, "tag.customerId,ended_at", "3,", name="b.csv")
    assert ends(tmp_path, tags) == end


def test_the_case_of_the_suffix_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path, "tag.customerId,ended_at", "1,2024-10-01", name="ENDS.CSV")
    assert ends(tmp_path, {"customerId": "1"}) == date(2024, 10, 1)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (["tag.customerId", "1"], "needs the columns ended_at and submission_id or tag.<name>"),
        (["ended_at", "2024-01-01"], "needs the columns"),
        (
            ["tag.customerId,submission_id,ended_at", "1,s,2024-01-01"],
            "row 1 must have one of tag.customerId, submission_id",
        ),
        (["tag.customerId,ended_at", "1,2024-01-01", ",2024-01-01"], "row 2 must have one of"),
        (["tag.customerId,ended_at", "1"], "row 1 must have"),
        (["tag.customerId,ended_at", "1,2024-01-01,more"], "row 1 must have"),
        (["tag.customerId,ended_at", "1,2024-13-01"], "row 1: ended_at must be a date"),
        (["tag.customerId,ended_at", "1,2024-01-01T00:00:00"], "row 1: ended_at must be"),
        (["tag.customerId,ended_at", '"1,2024-01-01'], "cannot be read"),
    ],
)
def test_an_input_that_is_not_clear_removes_nothing(tmp_path: Path, rows: list[str], why: str) -> None:
    write(tmp_path, *rows)
    with pytest.raises(KycError, match=f"relationships/a.csv: ({why}).*nothing was removed"):
        ends(tmp_path, {})


def planned(deployment: Deployment, data: int | None, documents: int | None) -> Plan:
    relationships = Relationships(deployment.settings.kyc_landing, Pseudonymizer(KEY))
    return make_plan(deployment.stores, relationships, RetentionPeriods(data, documents), TODAY)


def test_what_is_due_goes_with_its_documents_and_everything_else_stays(
    landing: Any, any_deployment: Deployment
) -> None:
    deployment = any_deployment
    rows = [landing.submission(f"s-{n}", 11 + 10 * n, {"customerId": str(n)}) for n in range(4)]
    rows[1]["selfie_file"] = rows[2]["selfie_file"]  # somebody else uses it too
    landing.manifest(DAY, rows)
    deployment.run(DAY)
    write(landing.root, "tag.customerId,ended_at", "0,2029-12-31", "1,2029-12-02", "2,2029-12-31", "3,")
    assert planned(deployment, 31, 31).is_empty
    plan = planned(deployment, 30, None)
    assert plan.is_empty, "thirty days after the second are the first, which is kept"
    plan = planned(deployment, 29, 0)
    assert plan.data.ids == {"s-1"}
    assert plan.documents.ids == {"s-0", "s-1", "s-2"}
    assert planned(deployment, None, 0).data.ids == frozenset()
    plan = planned(deployment, 29, 29)
    assert set(plan.documents.deletable_documents) == {"s-1-id.jpg"}

    before = deployment.rows()["verifications"]
    delete_documents(deployment.stores, plan.documents)
    erased = erase(deployment.stores, plan.data)
    deployment.stores.ledger.finish(erased.tombstones)
    assert not (landing.root / "documents" / "s-1-id.jpg").exists()
    after = deployment.rows()["verifications"]
    assert after == [row for row in before if row["submission_id"] != "s-1"]
    assert planned(deployment, 29, 29).is_empty
    assert deployment.run(DAY) == {DAY: 0}, "what was removed is never sent again"
    # The person may come back.
    landing.manifest("2024-09-09", [landing.submission("s-9", 80, {"customerId": "1"})])
    assert deployment.ingest("2024-09-09").accepted == 1


@pytest.mark.parametrize("step", [f"{DAY} verification_responses", "purge"])
def test_a_removal_that_is_killed_is_completed(landing: Any, deployment: Deployment, step: str) -> None:
    landing.manifest(DAY, [landing.submission("Zq7mark", 11, {"customerId": "0"})])
    deployment.run(DAY)
    write(landing.root, "tag.customerId,ended_at", "0,2029-12-01")

    def die(at: str) -> None:
        if at == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erase(deployment.stores, planned(deployment, 29, None).data, progress=die)
    plan = planned(deployment, 29, None)
    assert not plan.is_empty
    erased = erase(deployment.stores, plan.data)
    assert "Zq7mark" not in str((deployment.rows(), deployment.ledger_rows()))
    deployment.stores.ledger.finish(erased.tombstones)
    assert planned(deployment, 29, None).is_empty


def test_a_hold_that_is_set_after_the_plan_keeps_the_documents(landing: Any, deployment: Deployment) -> None:
    landing.manifest(DAY, [landing.submission("s-0", 11, {"customerId": "0"})])
    deployment.run(DAY)
    write(landing.root, "tag.customerId,ended_at", "0,2029-12-01")
    plan = planned(deployment, None, 1)
    person = ("customerId", "0")
    trail = AuditTrail(deployment.ledger, deployment.lake, Author("Ann"), lambda: Pseudonymizer(KEY))
    add_hold(deployment.ledger, trail, person, deployment.stores.tombstone(*person), "a lawsuit", "Ann")
    with pytest.raises(LegalHoldError, match="a lawsuit"):
        delete_documents(deployment.stores, plan.documents)
    assert (landing.root / "documents" / "s-0-id.jpg").exists()


def rejecting(landing: Any, deployment: Deployment, *, day: str = DAY) -> None:
    """Ingests a day of one good row, a repetition of it, and three rejected rows of other people."""
    good = landing.submission("s-0", 11, {"customerId": "0"})
    lost = {"selfie_file": "lost.jpg"}
    others = [landing.submission(f"s-{n}", 10 + 10 * n, {"customerId": str(n)}) | lost for n in (1, 2)]
    landing.manifest(day, [good, good, *others, good | {"submission_id": "Erika Mustermann"}])
    deployment.ingest(day)


def rejected(deployment: Deployment) -> list[tuple[str | None, str, bool]]:
    rows = deployment.rows()["rejected_submissions"]
    return [(row["submission_id"], row["reason"], row["detail"] is not None) for row in rows]


def due_rows(deployment: Deployment, today: date, days: int | None = 30) -> Plan:
    relationships = Relationships(deployment.settings.kyc_landing, Pseudonymizer(KEY))
    return make_plan(deployment.stores, relationships, RetentionPeriods(None, None, days), today)


def test_rejected_rows_lose_what_may_be_personal_and_still_count(
    landing: Any, deployment: Deployment
) -> None:
    rejecting(landing, deployment)
    before = rejected(deployment)
    assert due_rows(deployment, date(2024, 10, 8)).is_empty, "the thirtieth day after"
    assert due_rows(deployment, TODAY, None).is_empty
    plan = due_rows(deployment, date(2024, 10, 9))
    assert (plan.rejected.count, plan.rejected.held) == (3, 0)
    forget_rejected(deployment.stores, date(2024, 10, 9), 30)
    assert rejected(deployment) == [
        ("s-0", "duplicate_submission_id", True),
        (None, "file_not_found", False),
        (None, "file_not_found", False),
        (None, "invalid_submission_id", False),
    ]
    assert "Erika" not in str(deployment.rows())
    assert due_rows(deployment, TODAY).is_empty
    assert deployment.stores.landing.is_ingested(deployment.lake, DAY), "the day is not ingested for that"
    deployment.ingest(DAY)
    assert rejected(deployment) == before
    assert due_rows(deployment, TODAY).rejected.count == 3


def test_rejected_rows_under_a_legal_hold_stay(landing: Any, deployment: Deployment) -> None:
    rejecting(landing, deployment)
    trail = AuditTrail(deployment.ledger, deployment.lake, Author("Ann"), lambda: Pseudonymizer(KEY))
    person = ("customerId", "1")
    add_hold(deployment.ledger, trail, person, deployment.stores.tombstone(*person), "a lawsuit", "Ann")
    plan = due_rows(deployment, TODAY)
    assert (plan.rejected.count, plan.rejected.held) == (2, 1)
    forget_rejected(deployment.stores, TODAY, 30)
    assert [key for key, _, _ in rejected(deployment)] == ["s-0", "s-1", None, None]


def test_a_hold_may_cover_any_row_of_a_day_whose_manifest_has_changed(
    landing: Any, deployment: Deployment
) -> None:
    rejecting(landing, deployment)
    trail = AuditTrail(deployment.ledger, deployment.lake, Author("Ann"), lambda: Pseudonymizer(KEY))
    person = ("customerId", "somebody")
    add_hold(deployment.ledger, trail, person, deployment.stores.tombstone(*person), "a lawsuit", "Ann")
    assert due_rows(deployment, TODAY).rejected.count == 3
    landing.manifest(DAY, [landing.submission("s-9", 80, {"customerId": "9"})])
    plan = due_rows(deployment, TODAY)
    assert (plan.rejected.count, plan.rejected.held) == (0, 3)


def test_a_running_day_keeps_its_rejected_rows(landing: Any, deployment: Deployment) -> None:
    rejecting(landing, deployment)
    before = rejected(deployment)
    with deployment.held_by_another_run(DAY), pytest.raises(KycError, match="run-of-somebody-else"):
        forget_rejected(deployment.stores, TODAY, 30)
    assert rejected(deployment) == before
