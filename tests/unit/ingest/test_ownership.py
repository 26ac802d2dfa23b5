"""Which row owns a submission id: within a day, across days, and against rows that may have been sent."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from kyc_pipeline.errors import KycError
from kyc_pipeline.ingest import ownership
from kyc_pipeline.ingest.manifests import ingest_partition
from kyc_pipeline.ingest.owners import Owners
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import REJECTED_SUBMISSIONS, SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.ledger.database import Ledger
from kyc_pipeline.ledger.leases import hold
from kyc_pipeline.vocabulary import Outcome
from tests.unit.ingest.conftest import ZoneWithLedger

DAY, NEXT = "2024-09-01", "2024-09-02"
TAGGED = {"tags": '{"k": "v"}'}
OTHER = {"tags": '{"k": "other"}'}


@pytest.fixture
def kind_of_zone() -> type[ZoneWithLedger]:
    return ZoneWithLedger


def respond(zone: Any, outcomes: dict[str, Outcome], state: str = "complete", day: str = DAY) -> None:
    """Writes the day's responses, as the verify stage would."""
    rows = [
        {
            "submission_id": key,
            "outcome": outcome.value,
            "attempts": 1,
            "billable_calls": 1,
            "content_sha256": "0" * 64,
        }
        for key, outcome in outcomes.items()
    ]
    zone.lake.write(VERIFICATION_RESPONSES, day, rows, {"state": state})


# --- within a day -----------------------------------------------------------------------------------------


def test_duplicates_and_conflicts_within_a_file(zone: Any) -> None:
    zone.rows(TAGGED, TAGGED, OTHER, {"submission_id": "A2"})
    zone.ingest()
    assert zone.ids() == ["A1", "A2"]
    assert zone.reasons() == [(2, "duplicate_submission_id"), (3, "conflicting_submission_id")]
    assert zone.rejected()[0]["detail"] == "the submission is in a.csv row 1"


def test_duplicates_across_files_of_a_day_the_first_name_wins(zone: Any) -> None:
    zone.rows(OTHER, name="b.csv")
    zone.rows({}, TAGGED, name="a.csv")
    zone.ingest()
    assert zone.accepted()[0]["manifest"] == "a.csv"
    assert [(row["manifest"], row["reason"]) for row in zone.rejected()] == [
        ("a.csv", "conflicting_submission_id"),
        ("b.csv", "conflicting_submission_id"),
    ]


def test_same_content_under_other_names_is_a_duplicate(zone: Any) -> None:
    shutil.copy(zone.landing / "documents/id.jpg", zone.landing / "documents/copy.jpg")
    zone.rows({"tags": '{"a": "1", "b": "2"}'}, {"tags": '{"b":"2","a":"1"}', "id_file": "copy.jpg"})
    zone.ingest()
    assert zone.reasons() == [(2, "duplicate_submission_id")]


def test_a_row_that_cannot_be_sent_owns_nothing(zone: Any) -> None:
    zone.rows({"id_file": "lost.jpg"}, {})
    zone.ingest()
    assert zone.accepted()[0]["manifest_row"] == 2
    assert zone.reasons() == [(1, "file_not_found")]


def test_an_identical_copy_of_a_manifest_changes_nothing(zone: Any) -> None:
    path = zone.rows(TAGGED, TAGGED, {"submission_id": "A2"})
    zone.ingest()
    before = zone.files()
    shutil.copy(path, path.with_name("b.csv"))
    summary = zone.ingest()
    assert summary.redelivered == ("b.csv",)
    assert summary.manifests == 1
    assert zone.files() == before


# --- across days ------------------------------------------------------------------------------------------


def test_the_day_that_was_ingested_first_owns_the_id(zone: Any) -> None:
    zone.rows(TAGGED, {"submission_id": "A2"}, day=NEXT)
    zone.ingest(NEXT)
    zone.rows(TAGGED, {"submission_id": "A2", **OTHER}, {"submission_id": "A3"})
    zone.ingest()
    assert zone.ids() == ["A3"]
    assert zone.reasons() == [(1, "duplicate_submission_id"), (2, "conflicting_submission_id")]
    assert zone.rejected()[0]["detail"] == f"the submission was accepted on {NEXT}"
    before = zone.files(NEXT)
    zone.ingest(NEXT)
    assert zone.files(NEXT) == before


def test_a_manifest_delivered_again_on_another_day_is_all_duplicates(zone: Any) -> None:
    for day in (DAY, NEXT):
        zone.rows(TAGGED, {"submission_id": "A2"}, day=day)
        zone.ingest(day)
    assert zone.ids() == ["A1", "A2"]
    assert [reason for _, reason in zone.reasons(NEXT)] == ["duplicate_submission_id"] * 2


def test_an_id_is_free_again_once_no_partition_has_it(zone: Any) -> None:
    zone.rows({})
    zone.ingest()
    zone.rows({"submission_id": "A2"})
    zone.ingest()
    zone.rows(OTHER, day=NEXT)
    zone.ingest(NEXT)
    assert zone.ids(NEXT) == ["A1"]


def test_a_damaged_partition_of_another_day_is_named(zone: Any) -> None:
    zone.rows({}, day=NEXT)
    zone.ingest(NEXT)
    Path(zone.lake.path(SUBMISSIONS, NEXT)).write_bytes(b"PAR1 no more")
    zone.rows({"submission_id": "A2"})
    with pytest.raises(KycError, match=f"submissions partition {NEXT} cannot be read"):
        zone.ingest()
    assert not zone.lake.exists(SUBMISSIONS, DAY)


def test_two_days_at_once_never_accept_one_id_twice(zone: Any) -> None:
    days = [f"2024-09-{n:02}" for n in range(1, 9)]
    for day in days:
        zone.rows({}, {"submission_id": day}, day=day)
    start = threading.Barrier(len(days))
    errors: list[BaseException] = []

    def work(day: str) -> None:
        start.wait()
        try:
            with Ledger(zone.ledger_url) as ledger, hold(ledger, day, day) as held:
                lake = Lake(zone.lake.root)
                ingest_partition(landing=zone.landing, lake=lake, date=day, owners=Owners(lake, ledger, held))
        except BaseException as error:  # shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(day,)) for day in days]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(zone.ids(day).count("A1") for day in days) == 1
    assert all(day in zone.ids(day) for day in days)


# --- what may have been sent ------------------------------------------------------------------------------

SENT = [Outcome.COMPLETED, Outcome.REFUSED, Outcome.QUARANTINED, Outcome.UNCERTAIN]
NOT_SENT = [Outcome.FAILED, Outcome.NOT_ATTEMPTED]


@pytest.mark.parametrize("outcome", SENT)
def test_a_sent_row_is_kept_against_other_content(zone: Any, outcome: Outcome) -> None:
    zone.rows(TAGGED)
    zone.ingest()
    before = zone.accepted()
    respond(zone, {"A1": outcome})
    zone.rows(OTHER)
    summary = zone.ingest()
    assert (summary.kept, summary.accepted_rows) == (1, 0)
    assert zone.accepted() == before
    assert zone.reasons() == [(1, "conflicting_submission_id")]


@pytest.mark.parametrize("outcome", NOT_SENT)
def test_a_row_that_was_surely_not_sent_is_replaced(zone: Any, outcome: Outcome) -> None:
    zone.rows(TAGGED, {"submission_id": "gone"})
    zone.ingest()
    respond(zone, {"A1": outcome, "gone": outcome})
    zone.rows(OTHER)
    zone.ingest()
    assert [(row["submission_id"], row["tags"]) for row in zone.accepted()] == [("A1", [("k", "other")])]


def test_a_sent_row_that_is_in_no_manifest_any_more_is_kept(zone: Any) -> None:
    path = zone.rows({}, {"submission_id": "A2"})
    zone.ingest()
    before = zone.accepted()
    respond(zone, {"A1": Outcome.COMPLETED, "A2": Outcome.UNCERTAIN})
    path.unlink()
    assert zone.ingest().kept == 2
    assert zone.accepted() == before


def test_while_calls_are_being_made_every_row_may_have_been_sent(zone: Any) -> None:
    path = zone.rows({}, {"submission_id": "A2"})
    zone.ingest()
    respond(zone, {"A1": Outcome.NOT_ATTEMPTED}, state="dispatching")
    path.unlink()
    assert zone.ingest().kept == 2


def test_a_sent_row_stays_accepted_when_its_documents_are_deleted(zone: Any) -> None:
    zone.rows(TAGGED)
    zone.ingest()
    before = zone.accepted()
    respond(zone, {"A1": Outcome.COMPLETED})
    (zone.landing / "documents/id.jpg").unlink()
    zone.rows({"submission_id": "A0", "selfie_file": "selfie.png", "id_file": "selfie.png"}, TAGGED)
    summary = zone.ingest()
    assert summary.kept == 0
    (row,) = [row for row in zone.accepted() if row["submission_id"] == "A1"]
    assert row == {**before[0], "manifest_row": 2}


@pytest.mark.parametrize(
    "change", ["tags", "file", "both gone but other tags", "one gone, the other differs"]
)
def test_a_sent_row_with_other_content_conflicts_or_has_its_own_reason(
    zone: Any, make_image: Any, change: str
) -> None:
    zone.rows(TAGGED)
    zone.ingest()
    before = zone.accepted()
    respond(zone, {"A1": Outcome.COMPLETED})
    expected = "conflicting_submission_id"
    if change == "tags":
        zone.rows(OTHER)
    elif change == "file":
        zone.document("id.jpg", make_image(colour="red"))
    elif change == "both gone but other tags":
        for document in (zone.landing / "documents").iterdir():
            document.unlink()
        zone.document("removed-on-purpose", b"")
        zone.rows(OTHER)
        expected = "file_not_found"
    else:
        (zone.landing / "documents/id.jpg").unlink()
        zone.document("selfie.png", make_image("PNG", colour="red"))
        expected = "file_not_found"
    assert zone.ingest().kept == 1
    assert zone.accepted() == before
    assert zone.reasons() == [(1, expected)]


def test_a_sent_row_twice_in_the_manifest_is_accepted_once(zone: Any) -> None:
    zone.rows(TAGGED)
    zone.ingest()
    respond(zone, {"A1": Outcome.COMPLETED})
    zone.rows(OTHER, TAGGED, TAGGED)
    assert zone.ingest().kept == 0
    assert zone.accepted()[0]["manifest_row"] == 2
    assert zone.reasons() == [(1, "conflicting_submission_id"), (3, "duplicate_submission_id")]


def test_what_is_said_of_other_rows_stays_when_their_owner_was_sent(zone: Any) -> None:
    zone.rows(TAGGED, TAGGED, OTHER)
    zone.ingest()
    respond(zone, {"A1": Outcome.COMPLETED})
    before = zone.files()
    zone.ingest()
    assert zone.files() == before
    zone.rows(OTHER, name="0.csv")
    zone.ingest()
    assert {row["detail"] for row in zone.rejected()} == {"the submission is in a.csv row 1"}
    (zone.landing / "manifests" / DAY / "a.csv").unlink()
    zone.ingest()
    assert [row["detail"] for row in zone.rejected()] == ["the submission may have been sent already"]


def test_erasure_wins_over_what_was_sent(zone: Any) -> None:
    path = zone.rows({"tag.customerId": "9"}, {"submission_id": "A2", "tag.customerId": "8"})
    zone.ingest()
    respond(zone, {"A1": Outcome.COMPLETED, "A2": Outcome.COMPLETED})
    assert zone.ingest(erased=lambda tags: tags["customerId"] == "9").kept == 0
    assert zone.ids() == ["A2"]
    path.unlink()
    zone.ingest(erased=lambda tags: tags["customerId"] == "8")
    assert zone.ids() == []


def test_a_damaged_partition_whose_rows_may_have_been_sent_is_not_overwritten(zone: Any) -> None:
    zone.rows({})
    zone.ingest()
    damaged = Path(zone.lake.path(SUBMISSIONS, DAY))
    damaged.write_bytes(b"PAR1 no more")
    respond(zone, {"A1": Outcome.COMPLETED})
    with pytest.raises(KycError, match="may have been sent"):
        zone.ingest()
    assert damaged.read_bytes() == b"PAR1 no more"
    # Without responses nothing was sent, so the day is simply ingested again.
    Path(zone.lake.path(VERIFICATION_RESPONSES, DAY)).unlink()
    zone.ingest()
    assert zone.ids() == ["A1"]


# --- the lake ---------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes(zone: Any) -> None:
    zone.rows(*({"submission_id": f"A{n % 7}", "tags": f'{{"n": "{n % 11}"}}'} for n in range(200)))
    zone.rows({"submission_id": "lost", "id_file": "lost.jpg"}, name="b.csv")
    zone.ingest()
    before = zone.files()
    zone.ingest()
    assert zone.files() == before
    assert zone.ids() == sorted(zone.ids())


def test_rows_are_sorted_by_id_however_many_ranges_it_takes(
    zone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"{letter}{n}" for n in range(12) for letter in "zZ._-09a"]
    zone.rows(*({"submission_id": key} for key in ids))
    zone.ingest()
    respond(zone, dict.fromkeys(ids, Outcome.COMPLETED))
    zone.rows(*({"submission_id": key} for key in ids[:50]), {"submission_id": "new"})
    zone.ingest()
    whole = zone.accepted()
    monkeypatch.setattr(ownership, "SORTED_ROWS", 7)
    zone.ingest()
    assert zone.accepted() == whole
    assert zone.ids() == sorted([*ids, "new"])


def test_days_in_an_object_store_never_accept_one_id_twice(zone: Any, s3_root: str) -> None:
    for day in (DAY, NEXT):
        zone.rows({}, {"submission_id": f"of-{day}"}, day=day)
    start = threading.Barrier(2)
    errors: list[BaseException] = []

    def work(day: str) -> None:
        start.wait()
        try:
            with Ledger(zone.ledger_url) as ledger, hold(ledger, day, day) as held:
                lake = Lake(s3_root)
                ingest_partition(landing=zone.landing, lake=lake, date=day, owners=Owners(lake, ledger, held))
        except BaseException as error:  # shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(day,)) for day in (DAY, NEXT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    lake = Lake(s3_root)
    accepted = {day: lake.read(SUBMISSIONS, day)["submission_id"].to_pylist() for day in (DAY, NEXT)}
    assert sorted(accepted.values()) in (
        [["A1", f"of-{DAY}"], [f"of-{NEXT}"]],
        [["A1", f"of-{NEXT}"], [f"of-{DAY}"]],
    )
    reasons = [
        row for day in (DAY, NEXT) for row in lake.read(REJECTED_SUBMISSIONS, day)["reason"].to_pylist()
    ]
    assert reasons == ["duplicate_submission_id"]
