"""Submission ids that look like data of a person are warned of, and never shown."""

from typing import Any

import pyarrow as pa
import pytest

from kyc_pipeline.ingest.personal_ids import looks_personal

DAY = "2024-09-01"


@pytest.mark.parametrize(
    "key",
    [
        "1985-03-12",
        "19850312",
        "anna-1985.03.12",
        "12.03.1985",
        "03-12-1985",
        "anna_12-03-1985_x",
        "2014_02_01",
        "anna.at.example.org",
        "anna_at_example_com",
        "Anna-AT-mail-server.de",
        "anna.schmidt-gmail.com",
        "anna_gmx_de",
        "anna-example.com",
    ],
)
def test_what_is_warned_of(key: str) -> None:
    assert looks_personal(pa.chunked_array([[key]]), DAY).tolist() == [True]


@pytest.mark.parametrize(
    "key",
    [
        "a-0001",
        "2024-09-01-0001",
        "20240901-17",
        "2015-02-01",
        "1985-13-12",
        "1985-03-32",
        "119850312",
        "198503127",
        "1885-03-12",
        "00000000",
        "cat-and-dog",
        "what.is.it",
        "batch.7",
        "b8f5e1f2-7d3c-4a51-9d0e-0123456789ab",
    ],
)
def test_what_is_not(key: str) -> None:
    assert looks_personal(pa.chunked_array([[key]]), DAY).tolist() == [False]


def test_the_summary_names_the_row_and_not_the_id(zone: Any) -> None:
    zone.rows({"submission_id": "a-1"}, {"submission_id": "anna.1985-03-12"}, {"id_file": ""})
    summary = zone.ingest()
    assert summary.personal_ids.count == 1
    assert "(a.csv row 2)" in str(summary.personal_ids)
    assert "1985" not in str(summary.personal_ids)


def test_only_the_first_rows_are_named(zone: Any) -> None:
    zone.rows(*({"submission_id": f"19{year}-03-12"} for year in range(60, 80)))
    summary = zone.ingest()
    assert (summary.personal_ids.count, len(summary.personal_ids.places)) == (20, 10)
    assert "a.csv row 10, …)" in str(summary.personal_ids)
    zone.rows({"submission_id": "a-1"})
    assert not zone.ingest().personal_ids
