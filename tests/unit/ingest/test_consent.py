"""Rows without consent are rejected if it is required, and kept with it as evidence."""

from typing import Any

import pytest

from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.lake.tables import VERIFICATION_RESPONSES
from kyc_pipeline.vocabulary import Reason

REQUIRED = LandingOptions(consents=frozenset({"explicit", "legal-obligation"}))


@pytest.mark.parametrize("value", ["", " ", "no", "explicitly", "withdrawn"])
def test_a_row_without_it_is_rejected_before_its_documents_are_read(zone: Any, value: str) -> None:
    zone.rows({"consent": value, "id_file": "lost.jpg"})
    summary = zone.ingest(options=REQUIRED)
    assert summary.rejected == {Reason.MISSING_CONSENT: 1}
    assert zone.rejected()[0]["detail"] == "consent must be one of KYC_REQUIRE_CONSENT"


@pytest.mark.parametrize("value", ["explicit", " Explicit", "LEGAL-OBLIGATION"])
def test_a_row_with_it_is_accepted_and_keeps_it(zone: Any, value: str) -> None:
    zone.rows({"consent": value})
    assert zone.ingest(options=REQUIRED).accepted == 1
    assert zone.accepted()[0]["consent"] == value


def test_a_manifest_without_the_column_has_none(zone: Any) -> None:
    zone.rows({})
    assert zone.ingest(options=REQUIRED).rejected == {Reason.MISSING_CONSENT: 1}
    assert zone.ingest().accepted == 1
    assert zone.accepted()[0]["consent"] is None


def test_it_is_no_part_of_the_content(zone: Any) -> None:
    zone.rows({"consent": "explicit"})
    zone.ingest()
    before = zone.accepted()[0]["content_sha256"]
    zone.rows({"consent": "withdrawn"})
    zone.ingest()
    assert zone.accepted()[0]["content_sha256"] == before


def test_a_row_that_was_sent_stays(zone: Any) -> None:
    zone.rows({"consent": "explicit"})
    zone.ingest(options=REQUIRED)
    [row] = zone.accepted()
    sent = {"submission_id": "A1", "outcome": "completed", "content_sha256": row["content_sha256"]}
    zone.lake.write(VERIFICATION_RESPONSES, "2024-09-01", [{"attempts": 1, "billable_calls": 1, **sent}])
    zone.rows({"consent": "withdrawn"})
    summary = zone.ingest(options=REQUIRED)
    assert (summary.kept, summary.rejected) == (1, {Reason.MISSING_CONSENT: 1})
    assert zone.accepted() == [row]
