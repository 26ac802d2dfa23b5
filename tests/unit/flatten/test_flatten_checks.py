"""The checks of a day's curated tables, and their severities."""

from datetime import date
from typing import Any

import pytest

from kyc_pipeline.checks import CheckResult, Severity
from kyc_pipeline.orchestration.checks import check_specs
from kyc_pipeline.orchestration.checks.flatten import CHECKS, check_partition
from kyc_pipeline.orchestration.partitions import daily_partitions
from tests.unit.flatten.support import DAY, SEED, SEED_TEXT, Day, echo, response_row, submission_row, text_of

ERRORS = {"answers_reconcile", "verification_ids_unique"}
SEED_CHECKS = SEED["modelResults"]["technicalChecks"]


def checks_of(day: Day, *texts: str) -> dict[str, CheckResult]:
    summary = day.flatten(*texts)
    return {check.definition.name: check for check in check_partition(day.lake, DAY, summary)}


def failing(checks: dict[str, CheckResult]) -> set[str]:
    return {name for name, check in checks.items() if not check.passed}


def one_check(**changes: Any) -> dict[str, Any]:
    return {"modelResults": {"technicalChecks": [{**SEED_CHECKS[0], **changes}]}}


def test_errors_stop_publication_and_warnings_do_not() -> None:
    severe = {check.name for check in CHECKS if check.severity is Severity.ERROR}
    assert severe == ERRORS
    partitions = daily_partitions(date(2024, 9, 1))
    assert all(spec.blocking is (spec.name in ERRORS) for spec in check_specs(CHECKS, partitions))


def test_a_response_as_it_should_be_passes_everything(day: Day) -> None:
    checks = checks_of(day, text_of(echo("s-0")))
    assert failing(checks) == set()
    assert checks.keys() == {check.name for check in CHECKS}


def test_the_disagreement_of_time_stamps_is_a_figure_not_a_failure(day: Day) -> None:
    check = checks_of(day, SEED_TEXT, text_of(echo("s-1", timestampISO="2024-09-08T11:40:00")))[
        "timestamps_readable"
    ]
    assert check.passed
    assert check.metadata == {"iso_differs": 1, "median_iso_offset_seconds": -3000.0}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"verified": False}, "verified_agrees_with_checks"),
        (one_check(status="FAIL"), "verified_agrees_with_checks"),
        (one_check(confidence=97), "confidence_in_range"),
        (one_check(confidence="0.97"), "confidence_in_range"),
        (one_check(status="SEE_DETAILS"), "statuses_known"),
        (one_check(type="GAIT"), "types_known"),
        ({"new": 1}, "fields_known"),
        ({"model": 7}, "fields_known"),
        ({"idFileSize": 1}, "echo_matches"),
        ({"tags": []}, "echo_matches"),
        ({"timestamp": 1e300}, "timestamps_readable"),
        ({"timestampISO": "yesterday"}, "timestamps_readable"),
    ],
)
def test_what_is_odd_about_a_response_is_a_warning_that_says_what(
    day: Day, changes: dict[str, Any], name: str
) -> None:
    checks = checks_of(day, text_of(echo("s-0", **changes)))
    assert name in failing(checks)
    assert not failing(checks) & ERRORS
    check = checks[name]
    assert check.definition.severity is Severity.WARNING
    assert check.description.startswith(f"{DAY}: 1 ")
    assert 1 in check.metadata.values()


def test_a_lost_response_and_an_unknown_submission_are_errors(day: Day) -> None:
    assert failing(checks_of(day, text_of(echo("s-0")), "{}")) == {"answers_reconcile"}
    day.write([response_row("s-9", text_of(echo("s-9")))], [submission_row("s-0")])
    check = checks_of(day)["answers_reconcile"]
    assert not check.passed
    assert check.metadata == {"completed": 1, "verifications": 1, "without_submission": 1}


def test_a_verification_id_that_comes_twice_is_an_error(day: Day) -> None:
    check = checks_of(day, *(text_of(echo(f"s-{n}", verificationId=7)) for n in range(3)))
    assert failing(check) == {"verification_ids_unique"}
    assert check["verification_ids_unique"].metadata == {"repeated": 1}
