"""Erasure: nothing of the person is left, nobody else is touched, and they do not come back."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest

from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.tables import (
    CONTRACT_DRIFT,
    MODEL_CHECKS,
    REJECTED_SUBMISSIONS,
    SUBMISSIONS,
    VERIFICATION_FILES,
    VERIFICATION_RESPONSES,
    VERIFICATION_TAGS,
    VERIFICATIONS,
)
from kyc_pipeline.ledger.claims import commit
from kyc_pipeline.ledger.decisions import list_held
from kyc_pipeline.ledger.leases import PartitionBusy, acquire_lease, release_lease
from kyc_pipeline.ledger.models import Claim
from kyc_pipeline.ledger.queries import read_spend
from kyc_pipeline.privacy.erased import ErasedSubjects, Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.verify.reconcile import reconcile
from tests.unit.erasure.deployment import Deployment, erase_and_die

DAY, NEXT_DAY, LATER = "2024-09-08", "2024-09-09", "2024-09-10"
MARK = "Zq7mark"
CUSTOMER = f"{MARK}-9999"
THEIR_TAGS = {"customerId": CUSTOMER, "customerName": f"José {MARK}", "companyId": "COMP-001"}
PERSON = ("customerId", CUSTOMER)
RESTRICTED = (SUBMISSIONS, REJECTED_SUBMISSIONS, VERIFICATION_RESPONSES)
CURATED = (VERIFICATIONS, MODEL_CHECKS, VERIFICATION_TAGS, VERIFICATION_FILES, CONTRACT_DRIFT)


def tags_of(number: int) -> Mapping[str, str]:
    return {"customerId": f"other-{number}", "customerName": f"Nobody {number}", "companyId": "COMP-001"}


def fill(landing: Any, deployment: Deployment) -> None:
    """Two days: the person twice on the first, once on the second, among others."""
    rows = [landing.submission(f"a-{n}", 10 * n, tags_of(n)) for n in range(4)]
    theirs = [landing.submission(f"{MARK}-{n}", 100 + 10 * n, THEIR_TAGS) for n in range(2)]
    landing.manifest(DAY, [rows[0], theirs[0], *rows[1:], theirs[1]])
    last = landing.submission(f"{MARK}-2", 200, THEIR_TAGS)
    landing.manifest(NEXT_DAY, [last, landing.submission("b-0", 210, tags_of(9))])
    assert deployment.run(DAY, NEXT_DAY) == {DAY: 6, NEXT_DAY: 2}


def of_others(rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Rows that are not about the person, without `contract_drift`, which has only sums."""
    return {
        name: [row for row in own if MARK not in str(row) and row.get("reason") != "erased_subject"]
        for name, own in rows.items()
        if name != CONTRACT_DRIFT.name
    }


def test_nothing_is_left_and_nobody_else_is_touched(landing: Any, any_deployment: Deployment) -> None:
    deployment = any_deployment
    fill(landing, deployment)
    before, spent = deployment.rows(), read_spend(deployment.ledger, DAY)
    found = deployment.find(*PERSON)
    assert found.rows[SUBMISSIONS] == found.rows[VERIFICATION_RESPONSES] == found.rows[VERIFICATIONS] == 3
    assert found.rows[VERIFICATION_TAGS] == 3 * 4
    assert found.rows[MODEL_CHECKS] == len(before["model_checks"]) - len(of_others(before)["model_checks"])
    assert len(found.ledger) == found.manifest_rows == len(found.verification_ids) == 3
    assert (len(found.manifests), len(found.documents)) == (2, 6)

    deployment.erase(*PERSON)

    assert deployment.places_with(MARK) == []
    assert of_others(deployment.rows()) == of_others(before)
    rejected = [row for row in deployment.rows()["rejected_submissions"] if row["reason"] == "erased_subject"]
    assert [(row["date"], row["submission_id"], row["manifest_row"]) for row in rejected] == [
        (DAY, None, 2),
        (DAY, None, 6),
        (NEXT_DAY, None, 1),
    ]
    assert read_spend(deployment.ledger, DAY) == spent, "what was paid still adds up"
    for date in (DAY, NEXT_DAY):
        assert reconcile(deployment.lake, deployment.ledger, date).differences == ()
    after = deployment.find(*PERSON)
    assert (after.is_stored, after.was_erased, after.unfinished) == (False, True, False)


def test_a_lake_in_an_object_store(landing: Any, deployment: Deployment, s3_root: str) -> None:
    deployment.lake_url = s3_root
    fill(landing, deployment)
    before = deployment.rows()
    deployment.erase(*PERSON)
    assert MARK not in str(deployment.rows())
    assert of_others(deployment.rows()) == of_others(before)


def test_the_person_does_not_come_back(
    landing: Any, any_deployment: Deployment, simulator: Simulator
) -> None:
    deployment = any_deployment
    fill(landing, deployment)
    deployment.erase(*PERSON)
    erased, calls = deployment.rows(), simulator.received.total()
    assert deployment.run(DAY, NEXT_DAY) == {DAY: 0, NEXT_DAY: 0}
    assert deployment.rows() == erased, "a day that is run again gives what the erasure made"
    # Under a new id, in invalid rows, and under an old id with another tag.
    landing.manifest(
        LATER,
        [
            landing.submission("new", 50, {"customerId": f" {CUSTOMER} "}),
            {"submission_id": f"{MARK}-x", "tags": THEIR_TAGS},
            {"submission_id": f"{MARK}-y", "tags": json.dumps({"customerId": CUSTOMER, "n": 1})},
            landing.submission(f"{MARK}-0", 60, tags_of(1)),
            landing.submission("c-0", 70, tags_of(2)),
        ],
    )
    summary = deployment.ingest(LATER)
    assert (summary.received, summary.accepted, dict(summary.rejected)) == (5, 1, {"erased_subject": 4})
    assert deployment.run(LATER) == {LATER: 1}
    assert deployment.places_with(MARK) == []
    assert simulator.received.total() == calls + 1


def test_rejected_rows_are_erased_too_and_those_of_others_stay(landing: Any, deployment: Deployment) -> None:
    theirs = landing.submission(f"{MARK}-0", 10, THEIR_TAGS)
    landing.manifest(
        DAY,
        [
            theirs,
            {"submission_id": f"{MARK}-1", "id_file": f"{MARK}.jpg", "tags": THEIR_TAGS},
            {"submission_id": "a-1", "tags": tags_of(1)},
            theirs,
        ],
    )
    # A row of the same person has somebody else's id.
    other = landing.submission("b-0", 20, tags_of(2))
    landing.manifest(NEXT_DAY, [other, landing.submission("b-0", 30, THEIR_TAGS)])
    deployment.run(DAY, NEXT_DAY)
    found = deployment.erase(*PERSON)
    assert found.rows[REJECTED_SUBMISSIONS] == 3
    assert deployment.places_with(MARK) == []
    rows = deployment.rows()
    reasons = Counter(
        (row["date"], row["submission_id"], row["reason"]) for row in rows["rejected_submissions"]
    )
    assert reasons == {
        (DAY, None, "erased_subject"): 3,
        (DAY, "a-1", "missing_field"): 1,
        (NEXT_DAY, None, "erased_subject"): 1,
    }
    assert [row["submission_id"] for row in rows["verifications"]] == ["b-0"]
    deployment.run(DAY, NEXT_DAY)
    assert deployment.rows() == rows


def test_find_changes_nothing(landing: Any, deployment: Deployment) -> None:
    fill(landing, deployment)
    files = {path: path.read_bytes() for path in deployment.root.rglob("*") if path.is_file()}
    assert deployment.find(*PERSON).is_stored
    ledger = {path for path in files if path.name.startswith("ledger.sqlite")}
    assert all(path.read_bytes() == content for path, content in files.items() if path not in ledger)
    assert {path for path in deployment.root.rglob("*") if path.is_file()} == files.keys()
    assert deployment.stores.ledger.tombstones() == []


def test_killed_at_any_step_and_repeated(
    landing: Any, deployment: Deployment, processes: ForkServerContext
) -> None:
    theirs = landing.submission(f"{MARK}-0", 10, THEIR_TAGS)
    landing.manifest(DAY, [theirs, landing.submission("a", 20, tags_of(1)), {"submission_id": "b"}])
    deployment.run(DAY)
    before = deployment.rows()
    deployment.ledger.close()
    for step in itertools.count(1):
        killed = Deployment(deployment.root.with_name(f"killed-{step}"), deployment.server)
        shutil.copytree(deployment.root, killed.root)
        child = processes.Process(
            target=erase_and_die, args=(str(killed.root), deployment.server, *PERSON, step)
        )
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -9
        # Wherever it was killed, no row is unaccounted for.
        assert sum(killed.lake.row_count(table, DAY) for table in (SUBMISSIONS, REJECTED_SUBMISSIONS)) >= 3
        if step > 1:
            assert [tombstone.finished for tombstone in killed.stores.ledger.tombstones()] == [False, False]
        killed.erase(*PERSON)
        assert killed.places_with(MARK) == []
        assert of_others(killed.rows()) == of_others(before)
        assert len(killed.rows()["rejected_submissions"]) == 2
        assert read_spend(killed.ledger, DAY).calls == 2
        assert [tombstone.finished for tombstone in killed.stores.ledger.tombstones()] == [True, True]
        killed.ledger.close()
    assert step == 9


def test_a_day_at_work_is_refused_before_anything_changes(landing: Any, any_deployment: Deployment) -> None:
    deployment = any_deployment
    fill(landing, deployment)
    before = deployment.rows(), deployment.ledger_rows()["submissions"]
    with (
        deployment.held_by_another_run(NEXT_DAY),
        pytest.raises(PartitionBusy, match=f"{NEXT_DAY}.*run-of-somebody-else"),
    ):
        deployment.erase(*PERSON)
    assert (deployment.rows(), deployment.ledger_rows()["submissions"]) == before
    assert deployment.stores.ledger.tombstones() == []
    assert deployment.ledger_rows()["leases"] == []
    deployment.erase(*PERSON)
    assert deployment.places_with(MARK) == []


def test_a_held_submission_is_erased_and_no_longer_held(landing: Any, deployment: Deployment) -> None:
    landing.manifest(DAY, [landing.submission(f"{MARK}-0", 10, THEIR_TAGS)])
    deployment.ingest(DAY)
    # As a killed run leaves it.
    lease = acquire_lease(deployment.ledger, DAY, "run")
    [row] = deployment.rows()["submissions"]
    commit(deployment.ledger, lease, [Claim(row["submission_id"], row["content_sha256"])], [])
    release_lease(deployment.ledger, lease)
    assert len(list_held(deployment.ledger)) == 1
    deployment.erase(*PERSON)
    assert list_held(deployment.ledger) == []
    assert deployment.places_with(MARK) == []
    assert read_spend(deployment.ledger, DAY).billable_calls == 1


def test_documents_are_deleted_on_request_unless_others_use_them(
    landing: Any, deployment: Deployment
) -> None:
    shared = landing.submission(f"{MARK}-0", 10, THEIR_TAGS)
    own = landing.submission(f"{MARK}-1", 20, THEIR_TAGS)
    other = landing.submission("a-1", 30, tags_of(1)) | {"id_file": shared["id_file"]}
    landing.manifest(DAY, [shared, own, other])
    deployment.run(DAY)
    manifest = (landing.root / "manifests" / DAY / "m.jsonl").read_bytes()
    found = deployment.find(*PERSON)
    assert (len(found.documents), len(found.shared_documents)) == (4, 1)
    deployment.erase(*PERSON)
    assert len(deployment.find(*PERSON).documents) == 4, "only on request"
    deployment.erase(*PERSON, delete_documents=True)
    left = {path.name for path in (landing.root / "documents").iterdir()}
    assert left == {shared["id_file"], "a-1-id.jpg", other["selfie_file"]}
    assert (landing.root / "manifests" / DAY / "m.jsonl").read_bytes() == manifest
    assert deployment.run(DAY) == {DAY: 0}


def test_a_document_outside_the_landing_zone_is_never_deleted(landing: Any, deployment: Deployment) -> None:
    outside = deployment.root / "outside.jpg"
    outside.write_bytes(b"x")
    (landing.root / "documents" / "link.jpg").symlink_to(outside)
    row = {"submission_id": "s", "id_file": "../../outside.jpg", "selfie_file": "link.jpg"}
    landing.manifest(DAY, [row | {"tags": THEIR_TAGS}, row | {"id_file": str(outside), "tags": THEIR_TAGS}])
    deployment.ingest(DAY)
    assert deployment.erase(*PERSON, delete_documents=True).documents == []
    assert outside.exists()


def test_data_that_the_lake_lost_is_found_in_the_ledger(landing: Any, any_deployment: Deployment) -> None:
    deployment = any_deployment
    tags = THEIR_TAGS | {"customerId": f"100%_{MARK} \\é"}
    landing.manifest(
        DAY, [landing.submission(f"{MARK}-0", 10, tags), landing.submission("a", 20, tags_of(1))]
    )
    deployment.run(DAY)
    shutil.rmtree(deployment.lake.root)
    shutil.rmtree(landing.root / "manifests")
    assert not deployment.find("customerId", f"1000_{MARK}").is_stored
    found = deployment.erase("customerId", tags["customerId"])
    assert list(found.ledger.values()) == [DAY]
    assert deployment.places_with(MARK) == []
    assert len(deployment.ledger_rows()["submissions"]) == 2


def test_curated_tables_without_their_responses_are_erased_too(landing: Any, deployment: Deployment) -> None:
    fill(landing, deployment)
    before = deployment.rows()
    for table in RESTRICTED:
        shutil.rmtree(deployment.lake.folder(table))
    deployment.erase(*PERSON)
    assert deployment.places_with(MARK) == []
    for table in CURATED[:-1]:
        assert deployment.rows()[table.name] == of_others(before)[table.name]


def test_one_submission_by_its_id(landing: Any, deployment: Deployment) -> None:
    fill(landing, deployment)
    found = deployment.erase("submissionId", f"{MARK}-1")
    assert found.rows[SUBMISSIONS] == 1
    ids = {row["submission_id"] for row in deployment.rows()["verifications"]}
    assert ids == {"a-0", "a-1", "a-2", "a-3", "b-0", f"{MARK}-0", f"{MARK}-2"}
    assert deployment.run(DAY) == {DAY: 0}


@pytest.mark.parametrize("value", ["unknown", CUSTOMER.lower(), CUSTOMER[:-1], f"{CUSTOMER}9", ""])
def test_somebody_unknown_is_not_found(landing: Any, deployment: Deployment, value: str) -> None:
    fill(landing, deployment)
    found = deployment.find("customerId", value)
    assert (found.is_stored, found.manifest_rows, found.documents) == (False, 0, [])


def test_an_old_backup_of_the_lake_is_erased_again(landing: Any, deployment: Deployment) -> None:
    fill(landing, deployment)
    backup = deployment.root / "backup"
    shutil.copytree(deployment.lake.root, backup)
    deployment.erase(*PERSON)
    shutil.rmtree(deployment.lake.root)
    shutil.move(backup, deployment.lake.root)
    assert deployment.find(*PERSON).was_erased
    deployment.erase("submissionId", "a-0")
    assert deployment.places_with(MARK) == [], "any erasure erases everybody who was"


def test_rows_that_a_run_writes_during_the_erasure_are_erased_too(
    landing: Any, deployment: Deployment
) -> None:
    fill(landing, deployment)
    old = deployment.lake.read(VERIFICATION_TAGS, DAY)
    wrote: list[str] = []

    def write_back(step: str) -> None:
        if step == "ledger" and not wrote:
            wrote.append(step)
            deployment.lake.write(
                VERIFICATION_TAGS, DAY, old, deployment.lake.metadata(VERIFICATION_TAGS, DAY)
            )

    deployment.erase(*PERSON, progress=write_back)
    assert wrote
    assert deployment.places_with(MARK) == []


def test_the_state_changes_when_an_erasure_begins_sweeps_and_ends(
    landing: Any, deployment: Deployment
) -> None:
    fill(landing, deployment)
    states = [deployment.stores.ledger.state()]
    deployment.erase(*PERSON, progress=lambda step: states.append(deployment.stores.ledger.state()))
    states.append(deployment.stores.ledger.state())
    begun = states[2]
    assert len({states[0], begun, states[-2], states[-1]}) == 4


def test_drafts_of_killed_writers_are_removed(landing: Any, deployment: Deployment) -> None:
    fill(landing, deployment)
    folder = deployment.root / "lake" / "restricted" / "submissions" / f"date={LATER}"
    folder.mkdir()
    (folder / ".draft-999999999-abcdef").write_text(MARK)
    deployment.erase(*PERSON)
    assert deployment.places_with(MARK) == []


def test_another_key_is_rejected_since_it_could_recognise_nobody() -> None:
    old, new = Pseudonymizer("o" * 32), Pseudonymizer("n" * 32)
    tombstone = Tombstone("customerId", old.tag("customerId", "9999"), old.key_id)
    assert ErasedSubjects([tombstone], old)({"customerId": "9999", "submissionId": "x"})
    assert not ErasedSubjects([tombstone], old)({"customerId": "999", "submissionId": "9999"})
    with pytest.raises(UsageError, match="KYC_PSEUDONYM_KEY"):
        ErasedSubjects([tombstone], new)


def test_progress_shows_no_values(landing: Any, deployment: Deployment) -> None:
    fill(landing, deployment)
    steps: list[str] = []
    deployment.erase(*PERSON, progress=steps.append)
    assert MARK not in " ".join(steps)
    assert steps[0] == "tombstones"
    assert steps[-1] == "purge"
