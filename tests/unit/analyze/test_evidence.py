"""The regulator's pack: its figures against plain Python, its period, and what its files say."""

import csv
import datetime
import hashlib
import re
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner
from statsmodels.stats.proportion import proportion_confint

from kyc_pipeline.analyze.report.evidence import (
    BUILD_FILE,
    METRICS,
    METRICS_FILE,
    PAGE,
    Evidence,
    read_evidence,
)
from kyc_pipeline.cli.report import report
from kyc_pipeline.errors import KycError, UsageError
from kyc_pipeline.lake.storage import Lake
from tests.unit.analyze.lake_maker import Submission, Tags, write_day
from tests.unit.analyze.nasty import Nasty
from tests.unit.analyze.test_error_rates import label, write_labels

FIRST, LAST = datetime.date(2024, 9, 5), datetime.date(2024, 9, 11)
NOON = datetime.datetime(2024, 9, 2, 12, tzinfo=datetime.UTC)


def figures_of(evidence: Evidence, title: str) -> dict[str, Any]:
    return {figure.step: figure for figure in evidence.figures if figure.metric.title == title}


@pytest.mark.parametrize("period", [(None, None), (FIRST, LAST), (None, FIRST), (LAST, None)])
def test_rates_are_of_the_people_who_began_in_the_period(
    nasty: Nasty, period: tuple[datetime.date | None, datetime.date | None]
) -> None:
    first, last = (day and day.isoformat() for day in period)
    people = [
        rows for rows in nasty.attempts().values() if (first or "") <= rows[0].date <= (last or "9999-12-31")
    ]
    verified = sum(any(row.verified is True for row in rows) for rows in people)
    undecided = sum(
        not any(row.verified is True for row in rows) and any(row.undecided for row in rows)
        for rows in people
    )
    evidence = read_evidence(nasty.path, *period)
    passed = figures_of(evidence, "Pass rate (overall)")[""]
    assert (passed.n, passed.of) == (verified, len(people))
    low_high = proportion_confint(verified, len(people), method="wilson")
    assert (passed.low, passed.high) == pytest.approx(low_high, abs=1e-6)
    assert passed.worst == passed.value == pytest.approx(verified / len(people))
    assert passed.best == pytest.approx((verified + undecided) / len(people))
    failed = figures_of(evidence, "Fail rate (overall)")[""]
    assert failed.n == len(people) - verified - undecided
    assert failed.value == failed.best
    assert failed.worst == pytest.approx((len(people) - verified) / len(people))
    steps = figures_of(evidence, "Failure rates (per proofing process step)")
    table = nasty.rows(
        "SELECT check_group || '.' || check_type AS step, sum(never_passed) AS n, sum(subjects) AS of"
        " FROM failed_steps_by_subject"
        f" WHERE date BETWEEN '{first or '0001-01-01'}' AND '{last or '9999-12-31'}' GROUP BY ALL"
    )
    assert {step: (figure.n, figure.of) for step, figure in steps.items()} == {
        row["step"]: (row["n"], row["of"]) for row in table
    }


def test_submissions_without_a_person_are_counted(nasty: Nasty) -> None:
    named = sum(map(len, nasty.attempts().values()))
    assert read_evidence(nasty.path, None, None).unnamed == len(nasty.submissions) - named > 0


def test_times_and_few_people(lake: Lake, built: Any, tmp_path: Path) -> None:
    tags: Tags = {"companyId": ("acme", "p-acme"), "customerId": (None, "p1")}
    seconds = [10.0, 20.0, 60.0]
    for number, wait in enumerate(seconds):
        day = NOON + datetime.timedelta(days=number)
        answered = Submission(
            tags=tags, submitted_at=day, responded_at=day + datetime.timedelta(seconds=wait)
        )
        write_day(lake, day.date().isoformat(), [answered])
    built().close()
    (warehouse,) = tmp_path.glob("**/*.duckdb")
    (time,) = figures_of(
        read_evidence(warehouse, None, None), "Completion times (per proofing type)"
    ).values()
    assert (time.value, time.of, time.low_n, time.low) == (pytest.approx(30), 3, True, None)


def test_confirmed_fraud_is_what_the_labels_say(nasty: Nasty, lake: Lake, built: Any, tmp_path: Path) -> None:
    submissions = [Submission() for _ in range(10)]
    write_day(lake, "2024-09-02", submissions)
    title = "Confirmed fraud"
    without = read_evidence(nasty.path, None, None)
    assert figures_of(without, title) == {}
    assert "no submission" in {metric.title: why for metric, why in without.missing}[title].lower()
    said = ["fraud", "fraud", "genuine", "unsure"]
    write_labels(lake, [label(s.submission_id, what) for s, what in zip(submissions, said, strict=False)])
    built().close()
    (labelled,) = tmp_path.glob("**/*.duckdb")
    (figure,) = figures_of(read_evidence(labelled, None, None), title).values()
    assert (figure.n, figure.of, figure.value, figure.best) == (2, 10, 0.2, 0.2)
    assert figure.worst == pytest.approx(0.9)


def test_without_the_restricted_file_the_pack_says_how_to_build_it(
    lake: Lake, built: Any, tmp_path: Path
) -> None:
    write_day(lake, "2024-09-02", [Submission()])
    built().close()
    (warehouse,) = tmp_path.glob("**/*.duckdb")
    with duckdb.connect(warehouse) as connection:
        connection.execute("DROP TABLE submission_labels")
    with pytest.raises(KycError, match="the restricted file beside the warehouse is gone"):
        read_evidence(warehouse, None, None)


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (LAST, FIRST, "is after"),
        (datetime.date(2025, 1, 1), None, "is after"),
        (None, datetime.date(2020, 1, 1), "after"),
    ],
)
def test_a_period_without_days_is_refused(
    nasty: Nasty, first: datetime.date | None, last: datetime.date | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        read_evidence(nasty.path, first, last)


def test_a_period_beside_the_data_is_refused(nasty: Nasty) -> None:
    with pytest.raises(
        UsageError, match="no day from 2025-01-01 to 2025-03-31, only 2024-09-02 to 2024-10-13"
    ):
        read_evidence(nasty.path, datetime.date(2025, 1, 1), datetime.date(2025, 3, 31))


def test_an_empty_warehouse_has_no_evidence(empty: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no day yet"):
        read_evidence(empty, None, None)
    with pytest.raises(KycError, match="no warehouse"):
        read_evidence(tmp_path / "none.duckdb", None, None)


def test_the_command_writes_three_files_that_agree(
    nasty: Nasty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYC_WAREHOUSE", str(nasty.path))
    monkeypatch.setenv("KYC_REPORT", str(tmp_path / "report" / "index.html"))
    result = CliRunner().invoke(
        report, ["--evidence", "--from", "2024-09-05", "--to", "2024-09-11"], catch_exceptions=False
    )
    folder = tmp_path / "report" / "evidence"
    assert "2024-09-05 to 2024-09-11: 3 metrics measured, 20 not observable here" in result.stdout
    assert {path.name for path in folder.iterdir()} == {PAGE, METRICS_FILE, BUILD_FILE}
    page = (folder / PAGE).read_text()
    with (folder / METRICS_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*dict.fromkeys(row["metric"] for row in rows)] == [metric.title for metric in METRICS]
    for row in rows:
        assert row["metric"] in page
        assert (row["status"] == "measured") == bool(row["value"]) == bool(row["definition"])
        assert (row["status"] == "not observable here") == bool(row["reason"])
    for name in (METRICS_FILE, BUILD_FILE):
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page


def test_the_digest_of_the_data_can_be_computed_by_anybody(nasty: Nasty) -> None:
    table = nasty.connection.execute("FROM build_partitions ORDER BY date, table_name")
    lines = [",".join(column[0] for column in table.description or [])]
    lines += [",".join("" if value is None else str(value) for value in row) for row in table.fetchall()]
    digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    assert dict(read_evidence(nasty.path, None, None).build)["partitions_sha256"] == digest


def test_without_evidence_the_command_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"add --evidence; `kyc-pipeline publish`"):
        CliRunner().invoke(report, [], catch_exceptions=False)
