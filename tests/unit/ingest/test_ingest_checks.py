"""The checks of a day's ingest: their results and severities."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from kyc_pipeline.checks import CheckResult, Severity
from kyc_pipeline.ingest.manifests import IngestSummary
from kyc_pipeline.orchestration.checks.ingest import CHECKS, check_partition
from kyc_pipeline.wording import run_again


def checks_of(summary: IngestSummary) -> Mapping[str, CheckResult]:
    return {check.definition.name: check for check in check_partition(summary)}


def test_only_a_row_unaccounted_for_stops_publication() -> None:
    assert {check.name: check.severity for check in CHECKS} == {
        "received_reconciles": Severity.ERROR,
        "few_rejections": Severity.WARNING,
        "every_file_taken": Severity.WARNING,
    }


def test_a_row_that_is_neither_accepted_nor_rejected_is_an_error(zone: Any) -> None:
    zone.rows({}, {"submission_id": "A2"})
    summary = zone.ingest()
    assert all(check.passed for check in checks_of(summary).values())
    lost = checks_of(replace(summary, received=3))["received_reconciles"]
    assert not lost.passed
    day = summary.date
    assert lost.description == (
        f"{day}: 1 of 3 rows are unaccounted for: ingest the day again, with {run_again(day)}"
    )
    assert lost.metadata == {"received": 3, "accepted": 2, "rejected": 0}


def test_a_day_without_manifests_says_so(zone: Any) -> None:
    summary = zone.ingest()
    check = checks_of(summary)["received_reconciles"]
    assert (check.passed, check.description) == (True, f"{summary.date}: no manifests")


def test_a_file_that_is_no_manifest_by_its_name_is_a_warning_without_the_name(zone: Any) -> None:
    zone.rows({})
    assert checks_of(zone.ingest())["every_file_taken"].passed
    zone.manifest("Maria.txt", b"submission_id,id_file,selfie_file\n")
    check = checks_of(zone.ingest())["every_file_taken"]
    assert (check.passed, check.metadata) == (False, {"ignored": 1})
    assert "1 not read, because of the name (.txt)" in check.description
    assert "Maria" not in check.description


@pytest.mark.parametrize(
    ("bad", "rows", "passed"), [(1, 10, True), (4, 10, True), (5, 51, True), (5, 50, False), (6, 10, False)]
)
def test_many_rejections_are_a_warning(zone: Any, bad: int, rows: int, passed: bool) -> None:
    """At least five rows and at least 10 % of the day, as in the warehouse's check `many_rejections`."""
    zone.rows(*({"submission_id": f"A{n}" if n >= bad else ""} for n in range(rows)))
    check = checks_of(zone.ingest())["few_rejections"]
    assert (check.passed, check.metadata["share"]) == (passed, bad / rows)
    assert ("`kyc-pipeline rejected " in check.description) != passed
