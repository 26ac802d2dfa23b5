"""A setting that would decide otherwise about a day's files makes the day due again; sent rows stay."""

from typing import Any

import pytest

from kyc_pipeline.ingest.landing_options import LandingOptions
from kyc_pipeline.ingest.manifests import is_ingested
from kyc_pipeline.lake.tables import SUBMISSIONS, VERIFICATION_RESPONSES
from kyc_pipeline.vocabulary import DOCUMENT_TYPES, DocumentType

DAY = "2024-09-01"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
DEFAULTS = LandingOptions()
WITH_HEIC = LandingOptions(document_types=frozenset(DocumentType))
WITHOUT_PNG = LandingOptions(document_types=DOCUMENT_TYPES - {DocumentType.PNG})
WITHOUT_PDF = LandingOptions(document_types=DOCUMENT_TYPES - {DocumentType.PDF})
CENTRAL, WESTERN = (LandingOptions(csv_encoding=f"windows-{page}") for page in (1250, 1252))
CONSENT = LandingOptions(consents=frozenset({"explicit"}))
REJECT = LandingOptions(reject_duplicate_documents=True)
ANSI = "submission_id,id_file,selfie_file,tag.k\nA1,id.jpg,selfie.png,£\n".encode("cp1252")


def is_current(zone: Any, options: LandingOptions) -> bool:
    return is_ingested(zone.landing, zone.lake, DAY, options=options)


def send_all(zone: Any) -> None:
    """Writes outcomes, so that the rows count as sent."""
    row = {"outcome": "completed", "attempts": 1, "billable_calls": 1}
    sent = [
        row | {name: each[name] for name in ("submission_id", "content_sha256")} for each in zone.accepted()
    ]
    zone.lake.write(VERIFICATION_RESPONSES, DAY, sent)


def one_heic(zone: Any) -> None:
    zone.document("id.heic", HEIC)
    zone.rows({}, {"submission_id": "A2", "id_file": "id.heic"})


def one_ansi_file(zone: Any) -> None:
    zone.manifest("ansi.csv", ANSI)


def two_of_the_same(zone: Any) -> None:
    zone.rows({}, {"submission_id": "A2"})


@pytest.mark.parametrize(
    ("deliver", "before", "changed", "unchanged"),
    [
        (one_heic, DEFAULTS, [WITH_HEIC, WITHOUT_PNG], [WITHOUT_PDF, WESTERN, DEFAULTS]),
        (one_heic, WITH_HEIC, [DEFAULTS], [WITH_HEIC]),
        (one_ansi_file, WESTERN, [CENTRAL, DEFAULTS, WITHOUT_PNG], [WESTERN]),
        (two_of_the_same, DEFAULTS, [REJECT], [WESTERN, WITH_HEIC, WITHOUT_PDF]),
        (two_of_the_same, REJECT, [DEFAULTS], [REJECT]),
        (lambda zone: zone.rows({}), DEFAULTS, [CONSENT], [DEFAULTS]),
        (lambda zone: zone.rows({"consent": "explicit"}), CONSENT, [DEFAULTS], [CONSENT]),
        (lambda zone: zone.rows({}), WESTERN, [WITHOUT_PNG], [CENTRAL, DEFAULTS, REJECT, WITH_HEIC]),
    ],
    ids=[
        "HEIC rejected",
        "HEIC accepted",
        "ANSI",
        "duplicates",
        "duplicates rejected",
        "no consent",
        "consent",
        "nothing special",
    ],
)
def test_a_day_is_due_if_a_setting_would_decide_otherwise_about_its_files(
    zone: Any,
    deliver: Any,
    before: LandingOptions,
    changed: list[LandingOptions],
    unchanged: list[LandingOptions],
) -> None:
    deliver(zone)
    zone.ingest(options=before)
    assert [is_current(zone, options) for options in changed] == [False] * len(changed)
    assert [is_current(zone, options) for options in unchanged] == [True] * len(unchanged)


def test_a_new_type_brings_its_rows_in_and_keeps_the_others(zone: Any) -> None:
    one_heic(zone)
    zone.ingest()
    assert (zone.ids(), zone.reasons()) == (["A1"], [(2, "unsupported_file_type")])
    send_all(zone)
    zone.ingest(options=WITH_HEIC)
    assert (zone.ids(), zone.reasons()) == (["A1", "A2"], [])
    assert is_current(zone, WITH_HEIC)


@pytest.mark.parametrize(
    ("deliver", "before", "after"),
    [(one_heic, WITH_HEIC, DEFAULTS), (one_ansi_file, WESTERN, CENTRAL), (two_of_the_same, DEFAULTS, REJECT)],
    ids=["type", "encoding", "duplicates"],
)
def test_what_was_sent_stays_as_it_was_sent(zone: Any, deliver: Any, before: Any, after: Any) -> None:
    deliver(zone)
    zone.ingest(options=before)
    send_all(zone)
    sent = {row["submission_id"]: row["content_sha256"] for row in zone.accepted()}
    zone.ingest(options=after)
    assert {row["submission_id"]: row["content_sha256"] for row in zone.accepted()} == sent
    assert is_current(zone, after)


def test_a_day_of_an_earlier_build_is_not_due(zone: Any) -> None:
    one_heic(zone)
    summary = zone.ingest()
    rows = zone.lake.read(SUBMISSIONS, DAY)
    with zone.lake.writer(SUBMISSIONS, DAY, {"manifests": summary.identity}) as writer:
        writer.write(rows)
    assert is_current(zone, WITH_HEIC)
