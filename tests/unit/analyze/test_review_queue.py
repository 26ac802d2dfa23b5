"""The review queue against plain Python, and values that every tool can read."""

import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from kyc_pipeline.analyze.sql_models import load_models
from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.lake_maker import Check, Submission, write_day
from tests.unit.analyze.nasty import Nasty

PRIORITIES = {
    "uncertain": 1,
    "quarantined": 1,
    "verified_despite_failed_check": 2,
    "declined_without_failed_check": 2,
    "shared_document": 2,
    "check_in_review": 3,
}


def test_the_review_queue_against_plain_python(nasty: Nasty) -> None:
    failed: Any = nasty.checks[nasty.checks.status == "FAIL"].id
    in_review: Any = nasty.checks[nasty.checks.status == "REVIEW"].id
    people: dict[str, set[tuple[str, str]]] = {}
    rows: list[Any] = list(nasty.verifications.itertuples())
    for row in rows:
        if isinstance(row.document, str) and isinstance(row.customer, str):
            people.setdefault(row.document, set()).add((row.company, row.customer))
    expected = {
        (row.date, row.id, row.outcome)
        for row in nasty.submissions.itertuples()
        if row.outcome in {"uncertain", "quarantined"}
    }
    for row in rows:
        has_failed = row.id in set(failed)
        if row.verified and has_failed:
            expected.add((row.date, row.id, "verified_despite_failed_check"))
        if not row.verified and not has_failed:
            expected.add((row.date, row.id, "declined_without_failed_check"))
        if len(people.get(row.document, ())) > 1:
            expected.add((row.date, row.id, "shared_document"))
        if row.id in set(in_review):
            expected.add((row.date, row.id, "check_in_review"))
    found = nasty.rows("FROM review_queue")
    assert {(r["date"], int(r["submission_id"][2:]), r["reason"]) for r in found} == expected
    assert len(found) == len(expected)
    assert {r["reason"]: r["priority"] for r in found}.items() < PRIORITIES.items()
    assert [r["priority"] for r in found] == sorted(r["priority"] for r in found)


def test_a_verdict_despite_a_failed_check_is_in_the_queue(lake: Lake, computed: Any) -> None:
    fails = [Check("A", "FAIL"), Check("B", "REVIEW")]
    write_day(lake, "2024-09-02", [Submission(True, fails), Submission(False, fails[:1]), Submission()])
    assert computed("review_queue").execute("SELECT reason, priority FROM review_queue").fetchall() == [
        ("verified_despite_failed_check", 2),
        ("check_in_review", 3),
    ]


def test_every_table_goes_to_excel(lake: Lake, built: Any, tmp_path: Path) -> None:
    """pandas refuses times with a zone there, and duckdb 1.5 needs pytz to fetch them."""
    noon = datetime.datetime(2024, 9, 2, 12, tzinfo=datetime.UTC)
    write_day(lake, "2024-09-02", [Submission(submitted_at=noon, responded_at=noon)])
    connection = built()
    zoned = (
        "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND data_type LIKE '%ZONE%'"
    )
    assert connection.execute(zoned).fetchall() == []
    tables = [model.name for model in load_models()] + ["build_info", "build_inputs", "build_partitions"]
    with pd.ExcelWriter(tmp_path / "all.xlsx") as book:
        for name in tables:
            connection.sql(f"FROM {name}").df().to_excel(book, sheet_name=name[:31], index=False)
    times = "SELECT submitted_at, verified_at FROM submissions JOIN verifications USING (date, submission_id)"
    assert connection.execute(times).fetchall() == [
        (datetime.datetime(2024, 9, 2, 12), datetime.datetime(2024, 9, 8))
    ]
