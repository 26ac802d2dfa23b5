"""Two documents under several submission ids: each would be paid for."""

from typing import Any

import pytest

from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.vocabulary import Reason
from tests.unit.ingest.conftest import ZoneWithLedger

NEXT = "2024-09-02"
REJECT = LandingOptions(reject_duplicate_documents=True)


@pytest.fixture
def kind_of_zone() -> type[ZoneWithLedger]:
    return ZoneWithLedger


def send(zone: Any, *ids: str, day: str = "2024-09-01") -> None:
    """Writes the outcomes of these submissions."""
    content = {row["submission_id"]: row["content_sha256"] for row in zone.accepted(day)}
    row = {"outcome": "completed", "attempts": 1, "billable_calls": 1}
    zone.lake.write(
        VERIFICATION_RESPONSES,
        day,
        [row | {"submission_id": key, "content_sha256": content[key]} for key in ids],
    )


def test_they_are_counted_and_only_rejected_on_request(zone: Any) -> None:
    zone.rows(*({"submission_id": f"A{number}", "tag.n": str(number)} for number in range(4)))
    summary = zone.ingest()
    assert (summary.accepted, summary.duplicate_documents) == (4, 3)
    summary = zone.ingest(options=REJECT)
    assert (summary.accepted, summary.duplicate_documents) == (1, 0)
    assert zone.ids() == ["A0"]
    assert summary.rejected == {Reason.DUPLICATE_DOCUMENTS: 3}
    assert {row["detail"] for row in zone.rejected()} == {
        "both documents are those of a submission in a.csv row 1"
    }
    assert zone.ingest().accepted == 4


def test_one_document_in_common_is_no_duplicate(zone: Any, make_image: Any) -> None:
    zone.document("other.jpg", make_image(colour="red"))
    zone.rows({"submission_id": "A1"}, {"submission_id": "A2", "selfie_file": "other.jpg"})
    assert zone.ingest(options=REJECT).accepted == 2


def test_those_of_another_day_count(zone: Any) -> None:
    zone.rows({"submission_id": "A1"})
    assert zone.ingest().duplicate_documents == 0
    zone.rows({"submission_id": "B1"}, {"submission_id": "B2"}, day=NEXT)
    assert zone.ingest(NEXT).duplicate_documents == 2
    zone.ingest(NEXT, options=REJECT)
    assert zone.reasons(NEXT) == [(1, "duplicate_documents"), (2, "duplicate_documents")]
    assert "a submission of 2024-09-01" in zone.rejected(NEXT)[0]["detail"]
    before = zone.files()
    zone.ingest(options=REJECT)
    assert zone.files() == before, "the first submission stays"


def test_what_was_sent_stays_and_takes_its_documents(zone: Any) -> None:
    zone.rows({"submission_id": "A1"}, {"submission_id": "A2"})
    zone.ingest()
    send(zone, "A1", "A2")
    zone.rows(*({"submission_id": f"A{number}"} for number in range(4)))
    assert zone.ingest().duplicate_documents == 2
    zone.ingest(options=REJECT)
    assert zone.ids() == ["A1", "A2"]
    assert zone.reasons() == [(1, "duplicate_documents"), (4, "duplicate_documents")]


def test_a_repeated_row_keeps_its_own_reason(zone: Any) -> None:
    row = {"submission_id": "A1"}
    zone.rows(row, row, {"submission_id": "A2"}, {**row, "tag.n": "1"})
    zone.ingest(options=REJECT)
    assert zone.reasons() == [
        (2, "duplicate_submission_id"),
        (3, "duplicate_documents"),
        (4, "conflicting_submission_id"),
    ]
    zone.rows({"submission_id": "B1"}, {"submission_id": "B1"}, day=NEXT)
    zone.ingest(NEXT, options=REJECT)
    assert zone.reasons(NEXT) == [(1, "duplicate_documents"), (2, "duplicate_submission_id")]
