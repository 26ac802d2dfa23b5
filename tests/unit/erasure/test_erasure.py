"""Erasure: nothing of the person is left, nobody else is touched, and they do not come back."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from kyc_pipeline.cli.erase import erase as command
from kyc_pipeline.deepxl.simulator import Simulator
from kyc_pipeline.erasure.remove import erase
from kyc_pipeline.errors import UsageError
from kyc_pipeline.lake.tables import (
    CHANGED_KEY,
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
from kyc_pipeline.ledger.vendor_deletions import read_register, verification_ids
from kyc_pipeline.privacy.erased import ErasedSubjects, Tombstone
from kyc_pipeline.privacy.pseudonyms import Pseudonymizer
from kyc_pipeline.privacy.spelling import fold
from kyc_pipeline.verify.reconcile import reconcile
from tests.conftest import image_bytes
from tests.unit.erasure.deployment import Deployment, killed_erasures

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


def test_nothing_is_left_nobody_else_is_touched_and_the_person_does_not_come_back(
    landing: Any, any_filled: Deployment, simulator: Simulator
) -> None:
    deployment = any_filled
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


def test_the_id_of_a_submission_that_was_never_sent_is_forgotten(
    landing: Any, any_deployment: Deployment
) -> None:
    landing.manifest(DAY, [landing.submission(f"{MARK}-0", 100, THEIR_TAGS), landing.submission("a", 0)])
    any_deployment.ingest(DAY)
    assert len(any_deployment.ledger_rows()["owners"]) == 2
    any_deployment.erase(*PERSON)
    assert [row["submission_id"] for row in any_deployment.ledger_rows()["owners"]] == ["a"]
    assert any_deployment.places_with(MARK) == []


def test_a_lake_in_an_object_store(landing: Any, deployment: Deployment, s3_root: str) -> None:
    deployment.lake_url = s3_root
    fill(landing, deployment)
    before = deployment.rows()
    deployment.erase(*PERSON)
    assert MARK not in str(deployment.rows())
    assert of_others(deployment.rows()) == of_others(before)


SPELLINGS: Mapping[str, Mapping[str, str]] = {
    "same": {"customerId": "Müller-9999"},
    "decomposed": {"customerId": "Mu\u0308ller-9999"},
    "blanks": {"customerId": "  Müller-9999\t"},
    "no-break-blank": {"customerId": "Müller-9999\u00a0"},
    "zero-width": {"customerId": "Mül\u200bler-9999"},
    "byte-order-mark": {"customerId": "\ufeffMüller-9999"},
    "soft-hyphen": {"customerId": "Müller\u00ad-9999"},
    "right-to-left": {"customerId": "\u200fMüller-9999"},
    "filler": {"customerId": "Müller\u3164-9999"},
    "upper": {"customerId": "MÜLLER-9999"},
    "lower": {"customerId": "müller-9999"},
    "full-width": {"customerId": "Müller-９９９９"},
    "hyphen": {"customerId": "Müller\u20119999"},
    "minus": {"customerId": "Müller\u22129999"},
    "other-digits": {"customerId": "Müller-\u0669\u0669\u0669\u0669"},
    "name-full-width": {"\uff43ustomerId": "Müller-9999"},
    "name-case": {"customerID": "Müller-9999"},
    "name-blank": {"customer_id ": "Müller-9999"},
}
OTHERS: Mapping[str, Mapping[str, str]] = {
    "homoglyph": {"customerId": "\u041cüller-9999"},
    "other-tag": {"clientId": "Müller-9999"},
    "longer": {"customerId": "Müller-99999"},
    "umlaut": {"customerId": "Muller-9999"},
}
"""People, as far as anybody can know: docs/erasure.md says so."""


def test_no_spelling_brings_an_erased_person_back(landing: Any, deployment: Deployment) -> None:
    original = landing.submission("orig", 10, SPELLINGS["same"])
    landing.manifest(DAY, [original, landing.submission("other", 20, tags_of(1))])
    deployment.run(DAY)
    deployment.erase("customerId", "Müller-9999")
    people = {**SPELLINGS, **OTHERS}
    rows = [
        landing.submission(f"new-{name}", 100 + 2 * n, tags) for n, (name, tags) in enumerate(people.items())
    ]
    documents = {"id_file": original["id_file"], "selfie_file": original["selfie_file"]}
    landing.manifest(
        LATER,
        [
            *rows,
            # The id alone, another spelling of it, and the documents alone.
            landing.submission("orig-2", 200) | {"submission_id": "orig"},
            landing.submission("ORIG", 210),
            {"submission_id": "no-tag", **documents},
            landing.submission("one-document", 220) | {"selfie_file": original["selfie_file"]},
        ],
    )
    summary = deployment.ingest(LATER)
    accepted = {row["submission_id"] for row in deployment.lake.read(SUBMISSIONS, LATER).to_pylist()}
    assert accepted == {f"new-{name}" for name in OTHERS} | {"ORIG"}
    assert summary.rejected == {"erased_subject": len(SPELLINGS) + 3}


def test_every_spelling_that_was_sent_is_erased_too(landing: Any, any_deployment: Deployment) -> None:
    deployment = any_deployment
    people = {**SPELLINGS, **OTHERS}
    landing.manifest(
        DAY, [landing.submission(name, 2 * n, tags) for n, (name, tags) in enumerate(people.items())]
    )
    deployment.run(DAY)
    found = deployment.find("customerId", "müller-9999")
    assert found.ids == SPELLINGS.keys()
    assert found.spellings > 10
    shutil.rmtree(deployment.lake.folder(SUBMISSIONS))
    assert deployment.find("customerId", "müller-9999").ids == SPELLINGS.keys(), "from the responses alone"
    deployment.erase("customerId", "müller-9999")
    assert set(deployment.stores.ledger.submissions()) == {(name, DAY) for name in OTHERS}


def test_documents_that_others_sent_too_do_not_lock_them_out(landing: Any, deployment: Deployment) -> None:
    theirs = landing.submission(f"{MARK}-0", 10, THEIR_TAGS)
    other = landing.submission("a-0", 20, tags_of(1)) | {"id_file": theirs["id_file"]}
    landing.manifest(DAY, [theirs, other])
    deployment.run(DAY)
    deployment.erase(*PERSON)
    landing.manifest(LATER, [landing.submission("a-1", 30, tags_of(1)) | {"id_file": theirs["id_file"]}])
    assert deployment.ingest(LATER).accepted == 1
    assert {row["submission_id"] for row in deployment.rows()["submissions"]} == {"a-0", "a-1"}


@pytest.mark.parametrize("same", ["link.jpg", "copy.jpg"])
def test_documents_that_others_delivered_too_do_not_lock_them_out(
    landing: Any, deployment: Deployment, same: str
) -> None:
    """Their row is not ingested yet, and names the file by a link, or a copy of it."""
    theirs = landing.submission(f"{MARK}-0", 11, THEIR_TAGS)
    landing.manifest(DAY, [theirs, landing.submission("a-0", 20, tags_of(1))])
    deployment.run(DAY)
    documents = landing.root / "documents"
    (documents / "link.jpg").symlink_to(theirs["id_file"])
    shutil.copy(documents / theirs["id_file"], documents / "copy.jpg")
    landing.manifest(LATER, [landing.submission("a-1", 30, tags_of(1)) | {"id_file": same}])
    deployment.erase(*PERSON)
    assert deployment.ingest(LATER).accepted == 1
    # The other document is only the person's.
    again = {"id_file": "a-0-id.jpg", "selfie_file": theirs["selfie_file"]}
    landing.manifest(NEXT_DAY, [landing.submission("x", 40) | again])
    assert deployment.ingest(NEXT_DAY).rejected == {"erased_subject": 1}


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


def test_a_row_that_was_changed_after_it_was_sent_still_counts_once(
    landing: Any, deployment: Deployment
) -> None:
    def manifest(mark: str) -> None:
        people = {f"{MARK}-0": THEIR_TAGS, "a-0": tags_of(0), "a-1": tags_of(1)}
        rows = [
            landing.submission(key, 10 * n, {**tags, "note": mark if n < 2 else ""})
            for n, (key, tags) in enumerate(people.items())
        ]
        landing.manifest(DAY, rows)

    def counts() -> tuple[int, int]:
        """The rows that the tables stand for, and how many of them are in both."""
        rows = sum(deployment.lake.row_count(table, DAY) for table in (SUBMISSIONS, REJECTED_SUBMISSIONS))
        changed = int(deployment.lake.metadata(SUBMISSIONS, DAY).get(CHANGED_KEY, 0))
        return rows - changed, changed

    manifest("before")
    deployment.run(DAY)
    manifest("after")
    deployment.ingest(DAY)
    assert counts() == (3, 2)
    deployment.erase(*PERSON)
    assert counts() == (3, 1)
    deployment.ingest(DAY)
    assert counts() == (3, 1)


@pytest.mark.parametrize("left", ["kyc.duckdb", "kyc_restricted.duckdb"])
@pytest.mark.usefixtures("filled")
def test_whatever_was_published_is_rebuilt(
    landing: Any, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    deployment.ledger.close()
    (deployment.root / left).touch()
    for name, value in {
        "KYC_HOME": str(deployment.root),
        "KYC_LANDING": "landing",
        "KYC_LAKE": "lake",
        "KYC_LEDGER_URL": "sqlite:///ledger.sqlite",
        "KYC_WAREHOUSE": "kyc.duckdb",
    }.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(command, ["--tag", f"{PERSON[0]}={PERSON[1]}", "--dry-run"])
    assert "warehouse and report are rebuilt" in result.output


@pytest.mark.usefixtures("filled")
def test_find_changes_nothing(deployment: Deployment) -> None:
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
    [their_id] = deployment.find(*PERSON).verification_ids
    kills = 0
    for killed in killed_erasures(deployment, processes, *PERSON):
        kills += 1
        # Wherever it was killed, no row is unaccounted for.
        assert sum(killed.lake.row_count(table, DAY) for table in (SUBMISSIONS, REJECTED_SUBMISSIONS)) >= 3
        if kills > 1:
            assert [tombstone.finished for tombstone in killed.stores.ledger.tombstones()] == [False] * 3
        killed.erase(*PERSON)
        assert killed.places_with(MARK) == []
        assert of_others(killed.rows()) == of_others(before)
        assert len(killed.rows()["rejected_submissions"]) == 2
        assert read_spend(killed.ledger, DAY).calls == 2
        assert [verification_ids(row) for row in read_register(killed.ledger)] == [[their_id]]
        assert [tombstone.finished for tombstone in killed.stores.ledger.tombstones()] == [True] * 3
    assert kills == 8


def test_a_day_at_work_is_refused_before_anything_changes(any_filled: Deployment) -> None:
    deployment = any_filled
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
    [record] = read_register(deployment.ledger)
    assert record.submission_id == f"{MARK}-0", "DeepXL may have it, and knows no other id"
    assert deployment.places_with(MARK) == ["ledger.sqlite"]
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


def documents_in(landing: Any) -> set[str]:
    return {path.name for path in (landing.root / "documents").rglob("*") if not path.is_dir()}


def test_what_is_found_is_exactly_what_is_erased_and_nobody_loses_a_document(
    landing: Any, deployment: Deployment
) -> None:
    """The person's rows name a stranger's documents by other spellings, a symlink and a hard link."""
    folder = landing.root / "documents"
    (folder / "x").mkdir()
    victims = [landing.submission(f"a-{n}", 10 * n, tags_of(n)) for n in range(1, 4)]
    names = [str(row[name]) for row in victims for name in ("id_file", "selfie_file")]
    (folder / "mine.jpg").symlink_to(names[2])
    (folder / "same.jpg").hardlink_to(folder / names[3])
    (folder / "x" / "own-link.jpg").symlink_to(f"../{MARK}-own.jpg")
    pairs = [
        (f"./{names[0]}", f"x/../{names[1]}"),
        ("mine.jpg", "same.jpg"),
        (landing.document(f"{MARK}-own.jpg", image_bytes(90)), f"x/{names[4]}"),
        ("x/own-link.jpg", names[5]),
    ]
    (folder / "x" / names[4]).symlink_to(f"../{names[4]}")
    theirs: list[dict[str, object]] = [
        {"submission_id": f"{MARK}-{n}", "id_file": first, "selfie_file": second, "tags": THEIR_TAGS}
        for n, (first, second) in enumerate(pairs)
    ]
    landing.manifest(DAY, [*victims, *theirs])
    deployment.run(DAY)
    before, files, ledger = deployment.rows(), documents_in(landing), deployment.ledger_rows()["submissions"]
    found = deployment.find(*PERSON)
    assert deployment.erase(*PERSON, delete_documents=True).rows == found.rows

    assert files - documents_in(landing) == {f"{MARK}-own.jpg", "own-link.jpg"}
    assert set(found.deletable_documents) == {f"{MARK}-own.jpg", "x/own-link.jpg"}
    after = deployment.rows()
    for table in (SUBMISSIONS, VERIFICATION_RESPONSES, *CURATED[:-1]):
        assert len(before[table.name]) - len(after[table.name]) == found.rows[table] > 0
    left = {row["submission_id"] for row in deployment.ledger_rows()["submissions"]}
    assert {row["submission_id"] for row in ledger} - left == set(found.ledger) == found.ids
    gone = {row["verification_id"] for row in before["verifications"]} - {
        row["verification_id"] for row in after["verifications"]
    }
    assert gone == set(found.verification_ids)
    assert deployment.run(DAY) == {DAY: 0}


def test_a_tag_that_only_the_response_has_needs_consent(any_filled: Deployment) -> None:
    deployment = any_filled
    with deployment.ledger.write() as connection:
        connection.execute(
            text(
                "UPDATE submissions SET response = replace(response, :own, :new) WHERE submission_id = 'a-1'"
            ),
            {"own": "other-1", "new": CUSTOMER},
        )
    found = deployment.find(*PERSON)
    assert (len(found.ids), set(found.echoed)) == (3, {"a-1"})
    deployment.erase(*PERSON)
    assert "a-1" in {row["submission_id"] for row in deployment.rows()["verifications"]}
    found = deployment.find(*PERSON, with_responses=True)
    assert (set(found.ids), set(found.ledger)) == ({"a-1"}, {"a-1"})
    erase(deployment.stores, found)
    assert deployment.places_with(MARK) == []
    assert deployment.find(*PERSON).echoed == frozenset()


def test_documents_stay_while_a_manifest_that_may_name_them_is_unreadable(
    landing: Any, deployment: Deployment
) -> None:
    landing.manifest(DAY, [landing.submission(f"{MARK}-0", 10, THEIR_TAGS)])
    deployment.run(DAY)
    (landing.root / "manifests" / DAY / "new.parquet").write_bytes(b"PAR1 damaged")
    files = documents_in(landing)
    found = deployment.erase(*PERSON, delete_documents=True)
    assert (len(found.unreadable), found.deletable_documents) == (1, {})
    assert documents_in(landing) == files


def test_a_document_outside_the_landing_zone_is_never_deleted(landing: Any, deployment: Deployment) -> None:
    outside = deployment.root / "outside.jpg"
    outside.write_bytes(b"x")
    (landing.root / "documents" / "link.jpg").symlink_to(outside)
    row = {"submission_id": "s", "id_file": "../../outside.jpg", "selfie_file": "link.jpg"}
    landing.manifest(DAY, [row | {"tags": THEIR_TAGS}, row | {"id_file": str(outside), "tags": THEIR_TAGS}])
    deployment.ingest(DAY)
    assert deployment.erase(*PERSON, delete_documents=True).documents == {}
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


@pytest.mark.usefixtures("filled")
def test_curated_tables_without_their_responses_are_erased_too(deployment: Deployment) -> None:
    before = deployment.rows()
    for table in RESTRICTED:
        shutil.rmtree(deployment.lake.folder(table))
    deployment.erase(*PERSON)
    assert deployment.places_with(MARK) == []
    for table in CURATED[:-1]:
        assert deployment.rows()[table.name] == of_others(before)[table.name]


@pytest.mark.usefixtures("filled")
def test_one_submission_by_its_id(landing: Any, deployment: Deployment) -> None:
    found = deployment.erase("submissionId", f"{MARK}-1")
    assert found.rows[SUBMISSIONS] == 1
    ids = {row["submission_id"] for row in deployment.rows()["verifications"]}
    assert ids == {"a-0", "a-1", "a-2", "a-3", "b-0", f"{MARK}-0", f"{MARK}-2"}
    assert deployment.run(DAY) == {DAY: 0}
    names = ("id_file", "selfie_file")
    documents = dict(zip(names, (f"{MARK}-1-id.jpg", f"{MARK}-1-selfie.jpg"), strict=True))
    landing.manifest(LATER, [{"submission_id": "again", "tags": THEIR_TAGS, **documents}])
    assert deployment.ingest(LATER).accepted == 1, "the person is not erased"


@pytest.mark.parametrize("name", ["submission_id", "SubmissionID"])
def test_a_tag_that_is_spelt_like_the_submission_id_is_a_tag_like_any_other(
    landing: Any, deployment: Deployment, name: str
) -> None:
    stranger, person = landing.submission("77", 10, tags_of(1)), landing.submission("b-1", 20, {name: "77"})
    landing.manifest(DAY, [stranger, person])
    deployment.run(DAY)
    assert deployment.find("submissionId", "77").ids == {"77"}
    assert deployment.erase("submission_id", "77").ids == {"b-1"}
    assert [row["submission_id"] for row in deployment.rows()["verifications"]] == ["77"]
    landing.manifest(DAY, [stranger, landing.submission("b-2", 30, {"submissionID": "77"})])
    assert deployment.ingest(DAY).rejected == {"erased_subject": 1}
    assert [row["submission_id"] for row in deployment.rows()["submissions"]] == ["77"]


def test_erasing_a_submission_spares_people_whose_tag_has_its_id(
    landing: Any, deployment: Deployment
) -> None:
    tags = {"submission_id": "77"}
    landing.manifest(DAY, [landing.submission("77", 10, tags_of(1)), landing.submission("b-1", 20, tags)])
    deployment.run(DAY)
    found = deployment.erase("submissionId", "77")
    assert (set(found.ids), found.manifest_rows, len(found.documents)) == ({"77"}, 1, 2)
    assert deployment.run(DAY) == {DAY: 0}
    assert [row["submission_id"] for row in deployment.rows()["submissions"]] == ["b-1"]


@pytest.mark.parametrize("value", ["unknown", CUSTOMER[:-1], f"{CUSTOMER}9", ""])
@pytest.mark.usefixtures("filled")
def test_somebody_unknown_is_not_found(deployment: Deployment, value: str) -> None:
    found = deployment.find("customerId", value)
    assert (found.is_stored, found.manifest_rows, found.documents) == (False, 0, {})
    assert not found.is_known
    assert deployment.erase("customerId", value).erased.tombstones == frozenset(), "it may be mistyped"


@pytest.mark.usefixtures("filled")
def test_an_old_backup_of_the_lake_is_erased_again(deployment: Deployment) -> None:
    backup = deployment.root / "backup"
    shutil.copytree(deployment.lake.root, backup)
    deployment.erase(*PERSON)
    shutil.rmtree(deployment.lake.root)
    shutil.move(backup, deployment.lake.root)
    assert deployment.find(*PERSON).was_erased
    deployment.erase("submissionId", "a-0")
    assert deployment.places_with(MARK) == [], "any erasure erases everybody who was"


@pytest.mark.usefixtures("filled")
def test_rows_that_a_run_writes_during_the_erasure_are_erased_too(deployment: Deployment) -> None:
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


@pytest.mark.usefixtures("filled")
def test_drafts_of_killed_writers_are_removed(deployment: Deployment) -> None:
    folder = deployment.root / "lake" / "restricted" / "submissions" / f"date={LATER}"
    folder.mkdir()
    (folder / ".draft-999999999-abcdef").write_text(MARK)
    deployment.erase(*PERSON)
    assert deployment.places_with(MARK) == []


OLD_KEY = Pseudonymizer("k" * 32)


def older_tombstone(name: str, value: str) -> Tombstone:
    """As older versions made it: of the name and the value as they were given."""
    return Tombstone(name, OLD_KEY.tag(name, value), OLD_KEY.old_key_id)


def test_tombstones_of_older_versions_are_still_recognised() -> None:
    erased = ErasedSubjects([older_tombstone("customerId", "Müller-1")], OLD_KEY)
    assert erased({"customerId": " Müller-1"})
    assert erased({"customer_ID": "Müller-1"})
    assert not erased({"customerId": "Müller-2"})
    assert not erased({"clientId": "Müller-1"})


@pytest.mark.parametrize("tags", SPELLINGS.values(), ids=SPELLINGS)
def test_tombstones_of_older_versions_match_all_spellings_if_the_value_was_given_in_the_one_that_all_share(
    tags: Mapping[str, str],
) -> None:
    assert ErasedSubjects([older_tombstone("customerId", "müller-9999")], OLD_KEY)(tags)


def test_tombstones_made_before_apostrophes_were_folded_are_still_recognised() -> None:
    value = fold("O\u2019Brien\u22121", former=True)
    former = Tombstone("customerid", OLD_KEY.tag("customerid", value), OLD_KEY.key_id)
    erased = ErasedSubjects([former], OLD_KEY)
    assert value != fold("O\u2019Brien\u22121")
    assert erased({"customerId": "O\u2019BRIEN\u22121"})
    assert not erased({"customerId": "O\u2019Brien\u22122"})


def test_a_submission_id_has_one_spelling_in_older_tombstones_too() -> None:
    erased = ErasedSubjects([older_tombstone("submissionId", "a-1")], OLD_KEY)
    assert erased({"submissionId": "a-1"})
    assert not erased({"submissionId": "A-1"})


def test_erasing_again_renews_an_older_tombstone(landing: Any, deployment: Deployment) -> None:
    """Its value was given in a spelling that no other has, so only that one is recognised."""
    deployment.stores.ledger.remember([older_tombstone("customerId", "Müller-9999")])
    landing.manifest(DAY, [landing.submission("new", 10, SPELLINGS["upper"])])
    assert deployment.ingest(DAY).accepted == 1
    deployment.erase("customerId", "Müller-9999")
    assert deployment.ingest(DAY).rejected == {"erased_subject": 1}


def test_another_key_is_rejected_since_it_could_recognise_nobody() -> None:
    old, new = Pseudonymizer("o" * 32), Pseudonymizer("n" * 32)
    tombstone = Tombstone("customerId", old.tag("customerId", "9999"), old.key_id)
    assert ErasedSubjects([tombstone], old)({"customerId": "9999", "submissionId": "x"})
    assert not ErasedSubjects([tombstone], old)({"customerId": "999", "submissionId": "9999"})
    with pytest.raises(UsageError, match="KYC_PSEUDONYM_KEY"):
        ErasedSubjects([tombstone], new)


@pytest.mark.usefixtures("filled")
def test_the_state_changes_when_an_erasure_begins_sweeps_and_ends_and_progress_shows_no_values(
    deployment: Deployment,
) -> None:
    ledger, steps = deployment.stores.ledger, []
    states = [ledger.state()]

    def progress(step: str) -> None:
        steps.append(step)
        states.append(ledger.state())

    deployment.erase(*PERSON, progress=progress)
    states.append(ledger.state())
    begun = states[2]
    assert len({states[0], begun, states[-2], states[-1]}) == 4
    assert MARK not in " ".join(steps)
    assert (steps[0], steps[-1]) == ("tombstones", "purge")
