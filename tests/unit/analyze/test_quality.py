"""The checks: a sound lake passes all of them, and each one finds its kind of damage."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from kyc_pipeline.analyze.quality import check_build, load_checks
from kyc_pipeline.checks import CheckResult, Severity
from kyc_pipeline.errors import KycError
from kyc_pipeline.lake.storage import Lake
from kyc_pipeline.lake.tables import MODEL_CHECKS, VERIFICATIONS
from kyc_pipeline.orchestration.checks import check_specs
from tests.unit.analyze.lake_maker import (
    Check,
    Submission,
    rejected,
    write_curated,
    write_day,
    write_responses,
    write_submissions,
)

Built = Callable[..., duckdb.DuckDBPyConnection]
DAY, NEXT, LAST = "2024-09-08", "2024-09-09", "2024-09-10"
DEFAULT_TAGS = {"KYC_DIMENSIONS": "", "KYC_SUBJECT_TAGS": "companyId,customerId"}
"""Which tags need not occur: nobody has mistyped them."""


def sound() -> list[Submission]:
    return [
        Submission(True, [Check("LIVENESS"), Check("FACE_MATCH")]),
        Submission(False, [Check("LIVENESS", "FAIL", 0.1)]),
    ]


def failed(connection: duckdb.DuckDBPyConnection) -> dict[str, CheckResult]:
    return {result.name: result for result in check_build(connection) if not result.passed}


def test_a_sound_lake_passes_every_check(lake: Lake, built: Built) -> None:
    """An absent confidence or null is not out of range, and old oddities do not warn for ever."""
    absent, null = Check(confidence=None), Check(confidence=None, confidence_raw="null")
    write_day(lake, DAY, [*sound(), Submission(True, [absent, null])])
    write_day(lake, "2024-07-28", [Submission(True, [Check("LIVENESS", "FAIL")])])
    results = check_build(built(inputs=DEFAULT_TAGS))
    assert [result.name for result in results] == [check.definition.name for check in load_checks()]
    assert all(result.passed and result.metadata["count"] == 0 and result.sample == () for result in results)


def test_checks_of_the_warehouse_do_not_block_in_dagster_since_the_step_itself_fails() -> None:
    specs = check_specs(check.definition for check in load_checks())
    assert not [spec.name for spec in specs if spec.blocking]
    assert {spec.asset_key.to_user_string() for spec in specs} == {"warehouse"}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (["severity: error", "counts: days"], "the header has no todo:"),
        (["todo: mend it"], "the header has no severity:, counts:"),
        (["severity: bad", "counts: days", "todo: -"], "severity must be error or warning, not 'bad'"),
    ],
)
def test_a_malformed_header_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: list[str], problem: str
) -> None:
    (tmp_path / "checks").mkdir()
    header = "".join(f"-- {line}\n" for line in ("All is well.", "", *fields))
    (tmp_path / "checks" / "c.sql").write_text(f"{header}SELECT 1")
    monkeypatch.setattr("kyc_pipeline.analyze.quality.sql_folder", lambda: tmp_path)
    with pytest.raises(KycError) as raised:
        load_checks.__wrapped__()
    assert str(raised.value) == f"sql/checks/c.sql: {problem}"


@pytest.mark.parametrize("fields", [["counts: tags", "shows: b, c"], ["counts: sum of c"]])
def test_a_header_that_names_a_column_that_is_not_returned_names_its_file_before_any_violation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: list[str]
) -> None:
    (tmp_path / "checks").mkdir()
    header = "".join(f"-- {line}\n" for line in ("All is well.", "", "severity: error", "todo: -", *fields))
    (tmp_path / "checks" / "c.sql").write_text(f"{header}SELECT 1 AS b WHERE false")
    monkeypatch.setattr("kyc_pipeline.analyze.quality.sql_folder", lambda: tmp_path)
    monkeypatch.setattr("kyc_pipeline.analyze.quality.load_checks", load_checks.__wrapped__)
    with duckdb.connect() as connection, pytest.raises(KycError) as raised:
        check_build(connection)
    told = "sql/checks/c.sql: the query returns no column 'c', which the header names"
    assert str(raised.value) == told


def unaccounted(lake: Lake, date: str) -> None:
    day = sound()
    write_day(lake, date, day)
    write_responses(lake, date, day[:1])
    write_curated(lake, date, day[:1])


def unknown_outcome(lake: Lake, date: str) -> None:
    write_day(lake, date, [*sound(), Submission(outcome="perhaps")])


def response_without_submission(lake: Lake, date: str) -> None:
    day = sound()
    write_day(lake, date, day)
    write_submissions(lake, date, day[:1])


def submission_twice(lake: Lake, date: str) -> None:
    day = sound()
    write_day(lake, date, day)
    write_day(lake, NEXT, [replace(day[0], id=day[0].id)])


def verification_missing(lake: Lake, date: str) -> None:
    day = sound()
    write_day(lake, date, day)
    write_curated(lake, date, day[:1])


def no_verification(lake: Lake, date: str) -> None:
    write_day(lake, date, sound())
    write_curated(lake, date, [])


def checks_missing(lake: Lake, date: str) -> None:
    write_day(lake, date, sound())
    lake.write(MODEL_CHECKS, date, lake.read(MODEL_CHECKS, date).slice(1), {"source": "responses"})


def other_source(lake: Lake, date: str) -> None:
    write_day(lake, date, sound())
    lake.write(VERIFICATIONS, date, lake.read(VERIFICATIONS, date), {"source": "other responses"})


def curated_table_missing(lake: Lake, date: str) -> None:
    write_day(lake, date, sound())
    lake.fs.rm(lake.path(MODEL_CHECKS, date))


DAMAGES: list[tuple[Callable[[Lake, str], None], set[str]]] = [
    (unaccounted, {"every_submission_has_one_outcome"}),
    (unknown_outcome, {"every_submission_has_one_outcome", "funnel_reconciles"}),
    (response_without_submission, {"no_response_without_submission"}),
    (submission_twice, {"submission_ids_are_unique", "verification_ids_are_unique"}),
    (verification_missing, {"completed_submissions_have_verifications"}),
    (no_verification, {"completed_submissions_have_verifications"}),
    (checks_missing, {"check_counts_reconcile"}),
    (other_source, {"curated_tables_have_one_source"}),
    (curated_table_missing, {"curated_tables_have_one_source"}),
]


def test_errors_are_found(lake: Lake, built: Built) -> None:
    """Each on a day of its own."""
    days = {f"2024-08-{number:02}": names for number, (_, names) in enumerate(DAMAGES, 1)}
    for date, (damage, _) in zip(days, DAMAGES, strict=True):
        damage(lake, date)
    results = {result.name: result for result in check_build(built())}
    for date, names in days.items():
        for result in map(results.__getitem__, names):
            assert result.severity is Severity.ERROR
            assert not result.passed
            assert any(row.get("date", date) == date for row in result.sample), (date, result)


def test_two_submissions_with_one_verification_id_are_not_taken_for_lost_checks(
    lake: Lake, built: Built
) -> None:
    write_day(lake, DAY, sound())
    for table in (VERIFICATIONS, MODEL_CHECKS):
        rows = lake.read(table, DAY)
        same = pa.array([rows["verification_id"][0].as_py()] * rows.num_rows, pa.int64())
        lake.write(table, DAY, rows.set_column(0, "verification_id", same), {"source": "responses"})
    found = failed(built())
    assert "verification_ids_are_unique" in found
    assert "check_counts_reconcile" not in found


WARNINGS = [
    (Submission(outcome="uncertain"), "submissions_uncertain"),
    (Submission(outcome="quarantined"), "submissions_quarantined"),
    (Submission(True, [Check("LIVENESS", "UNKNOWN")], anomalies=["unknown_status"]), "unknown_statuses"),
    (
        Submission(
            True, [Check(confidence=None, confidence_raw="97")], anomalies=["confidence_out_of_range"]
        ),
        "confidence_out_of_range",
    ),
    (Submission(True, [Check("LIVENESS", "FAIL")]), "verdicts_agree_with_checks"),
    (Submission(False, [Check("LIVENESS", "PASS")]), "verdicts_agree_with_checks"),
    (Submission(True, [Check()], iso_offset_seconds=-6000.0), "time_stamps_agree"),
    (Submission(True, [Check()], anomalies=["id_file_size_differs"]), "answers_echo_what_was_sent"),
]

DRIFT = {
    "path": "result.modelResults.technicalChecks[].type",
    "kind": "unknown_type",
    "occurrences": 1,
    "example_submission_id": "s",
}


def test_each_warning_is_found_by_its_check_alone(lake: Lake, built: Built) -> None:
    day = [*sound(), *(submission for submission, _ in WARNINGS)]
    write_day(lake, DAY, day)
    write_curated(lake, DAY, day, drift=[DRIFT])
    # Two days of as many checks each, whose confidences differ.
    write_day(lake, NEXT, [Submission(True, [Check("FACE", confidence=0.95)] * 200)])
    write_day(lake, LAST, [Submission(True, [Check("FACE", confidence=0.05)] * 200)])
    found = failed(built()).values()
    assert {result.name: result.metadata["count"] for result in found} == Counter(
        ["contract_drift_seen", "large_drift", *(name for _, name in WARNINGS)]
    )
    assert {result.severity for result in found} == {Severity.WARNING}


def test_many_rejections_are_at_least_five_rows_and_a_tenth(lake: Lake, built: Built) -> None:
    """The same bounds as the day's check `few_rejections`."""
    days = {(5, 7): True, (4, 10): False, (5, 51): False, (5, 50): True, (3, 30): False, (7, 70): True}
    for number, (bad, rows) in enumerate(days, 1):
        accepted = [Submission(True, [Check()]) for _ in range(rows - bad)]
        write_day(lake, f"2024-09-0{number}", accepted, [rejected(row=row) for row in range(bad)])
    (result,) = failed(built()).values()
    assert (result.name, result.severity) == ("many_rejections", Severity.WARNING)
    found = {(int(row["rejected"]), int(row["received"])) for row in result.sample}
    assert found == {day for day, many in days.items() if many}


def test_a_setting_that_names_a_tag_of_no_submission_is_a_warning(lake: Lake, built: Built) -> None:
    some = Submission(True, [Check()], tags={"country": ("DE", None), "personId": (None, "pseudonym")})
    write_day(lake, DAY, [*sound(), some])
    settings = {"KYC_DIMENSIONS": "country,contry", "KYC_SUBJECT_TAGS": "companyId,personId"}
    found = failed(built(inputs=settings))
    assert set(found) == {"configured_tags_occur"}
    assert found["configured_tags_occur"].severity is Severity.WARNING
    assert found["configured_tags_occur"].sample == (
        {"setting": "KYC_DIMENSIONS", "tag": "contry"},
        {"setting": "KYC_SUBJECT_TAGS", "tag": "companyId"},
    )
    shown = "2 tags (KYC_DIMENSIONS: contry, KYC_SUBJECT_TAGS: companyId): no verified submission has"
    assert found["configured_tags_occur"].description.startswith(shown)


def test_no_tag_is_missed_before_there_are_verifications(lake: Lake, built: Built) -> None:
    write_day(lake, DAY, [Submission(outcome="failed")])
    assert failed(built(inputs={"KYC_DIMENSIONS": "country"})) == {}


def test_a_day_that_is_not_verified_or_not_flattened_yet_is_a_warning_that_names_it(
    lake: Lake, built: Built
) -> None:
    write_day(lake, DAY, sound())
    not_flattened = [*sound(), Submission(outcome="uncertain")]
    write_submissions(lake, NEXT, not_flattened)
    write_responses(lake, NEXT, not_flattened)
    write_submissions(lake, LAST, sound())
    found = failed(built())
    assert set(found) == {"days_not_flattened", "days_not_verified", "submissions_uncertain"}
    assert {result.severity for result in found.values()} == {Severity.WARNING}
    assert found["days_not_flattened"].sample == ({"date": NEXT, "completed": "2"},)
    assert "launch flatten_and_publish" in found["days_not_flattened"].description
    assert [row["date"] for row in found["days_not_verified"].sample] == [LAST]


def test_a_sample_shows_ids_and_counts_of_the_first_rows_and_not_what_a_query_groups(
    lake: Lake, built: Built
) -> None:
    odd = [Submission(True, [Check("LIVENESS", "FAIL")], iso_offset_seconds=3600.0) for _ in range(2)]
    write_day(lake, DAY, [*odd, *(Submission(outcome="uncertain") for _ in range(7))])
    found = failed(built())
    held = found["submissions_uncertain"]
    assert held.metadata["count"] == 7
    assert len(held.sample) == 5
    assert all(set(row) == {"date", "submission_id"} for row in held.sample)
    for name in ("time_stamps_agree", "verdicts_agree_with_checks"):
        assert found[name].metadata == {"count": 2, "unit": "verifications"}
        assert len(found[name].sample) == 1
